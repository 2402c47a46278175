// SPDX-License-Identifier: Apache-2.0
// Times the CUDA kernels alone, without torch and its launches, against a copy of as many bytes on the
// device: medians of events around each call, the second-level cache overwritten before it. One program for
// each element type; tools/gpu/native.py compiles it, for a GPU or with the emulator. Prints a JSON object a
// line as it goes: the device, the cells, a summary.
//
//   time_cuda [--only TEXT] [--rows N] [--most ELEMENTS] [--calls N] [--seconds S] [--list]
//
// --only takes cells whose "op dtype shape" contains the text; an = at its beginning: is the text. --rows
// changes the number of rows. Exit code 1: a call failed; 3: the seconds were not enough for all cells.
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>

#include "cuda/cells.h"

namespace {

using namespace softkern::tools;
using softkern::cuda::Outcome;

struct Options {
  std::string only;
  int64_t rows = 0, most = INT64_MAX;
  int calls = 15;
  double seconds = 1e9;
  bool list = false;

  bool take(const std::string& name) const {
    return only[0] == '=' ? name == only.substr(1) : name.find(only) != std::string::npos;
  }
};

Options options_of(int count, char** values) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    if (name == "--list") {
      options.list = true;
    } else if (i + 1 < count && name == "--only") {
      options.only = values[++i];
    } else if (i + 1 < count && name == "--rows") {
      options.rows = atoll(values[++i]);
    } else if (i + 1 < count && name == "--most") {
      options.most = atoll(values[++i]);
    } else if (i + 1 < count && name == "--calls") {
      options.calls = std::max(1, atoi(values[++i]));
    } else if (i + 1 < count && name == "--seconds") {
      options.seconds = atof(values[++i]);
    } else {
      give_up(("time_cuda: what is " + name + "?").c_str());
    }
  }
  return options;
}

class Clock {
 public:
  explicit Clock(int calls) : calls_(calls), flush_(std::max(size_t{128} << 20, 2 * cache_bytes())) {}

  /// Microseconds of calls, in ascending order.
  template <class F>
  std::vector<float> times(F call) {
    std::vector<float> found;
    for (int i = 0; i <= calls_; ++i) {
#if !defined(SOFTKERN_EMULATED)
      clear(flush_.at(), flush_.bytes());
#endif
      const float taken = timer_(call);
      if (i > 0) found.push_back(taken);  // the first call loads the kernel
    }
    std::sort(found.begin(), found.end());
    return found;
  }
  /// Of a copy that reads and writes that many bytes together.
  float copy(int64_t bytes) {
    const auto known = copies_.find(bytes);
    if (known != copies_.end()) return known->second;
    const Memory from(static_cast<size_t>(bytes / 2)), to(static_cast<size_t>(bytes / 2));
    clear(from.at(), from.bytes());
    const std::vector<float> found = times([&] { copy_on_device(to.at(), from.at(), to.bytes()); });
    return copies_[bytes] = found[found.size() / 2];
  }

 private:
  int calls_;
  Memory flush_;
  Timer timer_;
  std::map<int64_t, float> copies_;
};

bool measure(const Op& op, const Operands& on, Clock& clock) {
  Outcome outcome{};
  const std::vector<float> found = clock.times([&] { outcome = op.call(on); });
  const std::string shape = on.at.sizes(", ");
  printf("{\"op\": \"%s\", \"dtype\": \"%s\", \"shape\": [%s], ", op.name.c_str(), kElementName,
         shape.c_str());
  if (outcome.error != nullptr) {
    printf("\"error\": \"%s\"}\n", outcome.error);
    fflush(stdout);
    return false;
  }
  const int64_t bytes = op.bytes(on.at);
  const float taken = found[found.size() / 2], copy = clock.copy(bytes);
  printf("\"way\": \"%s\", \"bytes\": %lld, \"microseconds\": %.2f, ", outcome.path,
         static_cast<long long>(bytes), taken);
  printf("\"quartiles\": [%.2f, %.2f], \"copy_microseconds\": %.2f, \"percent\": %.1f}\n",
         found[found.size() / 4], found[3 * found.size() / 4], copy, 100 * copy / taken);
  fflush(stdout);
  return true;
}

}  // namespace

int main(int count, char** values) {
  seconds();
  const Options options = options_of(count, values);
  if (!options.list) {
    printf("{\"device\": \"%s\", \"cuda\": %d, \"dtype\": \"%s\", \"calls\": %d}\n", device_name().c_str(),
           runtime_version(), kElementName, options.calls);
  }
  const std::vector<Op> ops = all_ops();
  std::unique_ptr<Clock> clock(options.list ? nullptr : new Clock(options.calls));
  int cells = 0, left = 0, failed = 0, too_large = 0;
  for (const Group& group : all_groups()) {
    for (Layout at : group.layouts) {
      if (options.rows > 0) at.rows = std::max<int64_t>(1, options.rows / at.inner) * at.inner;
      if (at.count() > options.most) continue;
      std::unique_ptr<Operands> on;
      for (const Op& op : ops) {
        const auto& names = group.ops;
        if (!names.empty() && std::find(names.begin(), names.end(), op.name) == names.end()) continue;
        const std::string name = op.name + " " + kElementName + " " + at.sizes("x");
        if (!options.take(name)) continue;
        if (options.list) {
          printf("%s\n", name.c_str());
          continue;
        }
        if (seconds() > options.seconds) {
          ++left;
          continue;
        }
        // With the copy's two tensors and a half.
        if (on == nullptr && 2 * Operands::bytes(at) > free_memory()) {
          ++too_large;
          continue;
        }
        if (on == nullptr) on.reset(new Operands(at));
        ++cells;
        failed += !measure(op, *on, *clock);
      }
    }
  }
  if (options.list) return 0;
  printf(
      "{\"dtype\": \"%s\", \"cells\": %d, \"failed\": %d, \"left\": %d, \"too_large\": %d, \"seconds\": "
      "%.1f}\n",
      kElementName, cells, failed, left, too_large, seconds());
  if (failed > 0 || cells == 0) return 1;
  return left > 0 ? 3 : 0;
}

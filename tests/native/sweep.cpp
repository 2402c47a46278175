// SPDX-License-Identifier: Apache-2.0
// The kernels of every instruction set that runs here, on a sweep of shapes, layouts, types and options,
// without torch or Python: every tensor and the kernels' own memory stand between two pages that nobody may
// touch, once against the first and once against the second, and all instruction sets have to agree in every
// bit, long rows in chunks and results written past the caches too; and the bits are those of sweep.hashes,
// so that a change of all instruction sets shows as well. Prints what was compared; exit code 1 and the case,
// or the op and the way, where bits differ.
//   sweep [most classes]          compares; the hashes of rows of so many classes alone
//   sweep [most classes] hashes   prints what sweep.hashes should contain
//   sweep MOST from LEAST         leaves out fewer classes, and the hashes, which are of all of them
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <tuple>
#include <vector>

#include "../../csrc/cpu/dispatch.h"

using namespace softkern;
using namespace softkern::cpu;

namespace {

/// Memory that ends where a forbidden page begins (at_end), or begins where one ends.
class Guarded {
 public:
  Guarded(size_t bytes, bool at_end) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size_ = (bytes + page - 1) / page * page + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, size_ - 2 * page, PROT_READ | PROT_WRITE) != 0) abort();
    data = at_end ? base_ + size_ - page - bytes : base_ + page;
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(base_, size_); }
  std::string bytes() const { return std::string(data, bytes_); }
  char* data;

 private:
  char* base_;
  size_t size_, bytes_;
};

uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 32)) * 0x9e3779b97f4a7c15u;
  return x ^ (x >> 29);
}

uint64_t state;
double uniform() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) * 0x1p-53;
}

constexpr size_t kSize[kElementTypes] = {4, 8, 2, 2};

void put(char* to, int type, double value) {
  const float single = static_cast<float>(value);
  uint32_t bits;
  memcpy(&bits, &single, 4);
  uint16_t narrow = static_cast<uint16_t>(bits >> 16);  // bfloat16
  // float16: exponents re-biased, enough for inputs of a test; what is too large is infinite.
  const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
  const uint32_t sign = bits >> 16 & 0x8000u;
  if (type == kHalf) {
    narrow = static_cast<uint16_t>(
        sign | (std::isnan(value) ? 0x7e00u
                : exponent >= 31  ? 0x7c00u
                : exponent <= 0   ? 0u
                                  : static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 0x3ffu)));
  }
  if (type == kFloat) memcpy(to, &single, 4);
  if (type == kDouble) memcpy(to, &value, 8);
  if (type == kBFloat16 || type == kHalf) memcpy(to, &narrow, 2);
}

/// The bits of an element. The sign and the payload of a NaN are the CPU's, so that all of them are one here.
uint64_t bits_of(const char* p, int type) {
  constexpr uint64_t kNaN = ~uint64_t(0);
  if (type == kDouble) {
    double x;
    uint64_t bits;
    memcpy(&x, p, 8);
    memcpy(&bits, p, 8);
    return x == x ? bits : kNaN;
  }
  if (type == kFloat) {
    float x;
    uint32_t bits;
    memcpy(&x, p, 4);
    memcpy(&bits, p, 4);
    return x == x ? bits : kNaN;
  }
  uint16_t bits;
  memcpy(&bits, p, 2);
  return (bits & 0x7fff) > (type == kBFloat16 ? 0x7f80 : 0x7c00) ? kNaN : bits;
}

struct Case {
  int type;
  int64_t classes, inner, rows;
  bool at_end;
  enum Values { kPlain, kHurting, kShifted } values;
};

/// What an op of one instruction set wrote, and the way that it went.
struct Result {
  std::string op, way;
  int type;
  std::string bytes;
};
using Results = std::vector<Result>;

bool same(const Result& a, const Result& b) {
  const size_t size = kSize[a.type];
  for (size_t i = 0; i < a.bytes.size(); i += size) {
    if (bits_of(&a.bytes[i], a.type) != bits_of(&b.bytes[i], a.type)) return false;
  }
  return true;
}

/// Rows by rows, or each row in chunks if the kernel shares rows of such a call: with the memory that it asks
/// for and no byte more.
class Caller {
 public:
  Caller(const KernelTable& table, const Case& c, bool shared)
      : table_(table), case_(c), chunks_(shared ? (c.classes + kChunkClasses - 1) / kChunkClasses : 0) {}

  /// The way that the kernel went.
  template <class Args>
  const char* operator()(const Kernel<Args>& kernel, const Args& args) const {
    const int count = static_cast<int>(chunks_);
    const size_t shared = count == 0 || kernel.chunk == nullptr ? 0 : kernel.shared_bytes(args, count);
    if (shared == 0) {
      const Guarded scratch(kernel.scratch_bytes(args, case_.rows), case_.at_end);
      return way_of(kernel.rows(args, {0, case_.rows, scratch.data}));
    }
    const Guarded memory(shared, case_.at_end);
    const char* way = "";
    for (int64_t r = 0; r < case_.rows; ++r) {
      for (int step = 0; step < kernel.steps; ++step) {
        for (int i = count - 1; i >= 0; --i) {
          const int64_t begin = i * kChunkClasses;
          const int64_t end = std::min(begin + kChunkClasses, case_.classes);
          way = way_of(kernel.chunk(args, {r, begin, end, i, count, memory.data}, step));
        }
      }
    }
    return way;
  }

 private:
  const char* way_of(const Ran& ran) const {
    if (strcmp(ran.isa, table_.isa) != 0) abort();
    return ran.path;
  }

  const KernelTable& table_;
  const Case& case_;
  int64_t chunks_;
};

enum How { kByRows, kShared, kStreamed, kHows };

/// What row_losses reads and writes besides the logits and their gradient, and its cases: kinds of targets,
/// each with another transformation, padding, upstream gradients and results.
class RowLossCases {
 public:
  static constexpr int kCases = 16, kIndices = 3;
  explicit RowLossCases(const Case& c, const std::vector<int64_t>& targets)
      : case_(c),
        computed_(c.type == kDouble ? kDouble : kFloat),
        size_(kSize[computed_]),
        several_(c.rows * kIndices * sizeof(int64_t), c.at_end),
        by_index_(c.rows * kIndices * size_, c.at_end),
        by_row_(c.rows * size_, c.at_end),
        argmax_(c.rows * sizeof(int64_t), c.at_end),
        correct_(c.rows, c.at_end),
        numbers_(kPartNumbers * c.rows * size_, c.at_end) {
    for (int64_t i = 0; i < c.rows * kIndices; ++i) {
      const int64_t target = (targets[i % c.rows] + i) % valid();
      const int64_t y = target < 0 ? 0 : target;
      memcpy(several_.data + i * sizeof(int64_t), &y, sizeof(y));
      put(by_index_.data + i * size_, computed_, 0.25 * (i % 4));
    }
    for (int64_t r = 0; r < c.rows; ++r) put(by_row_.data + r * size_, computed_, 0.5 * (r % 3));
  }

  RowLossArgs args(int number, const Shape& shape, const Rows& logits, const Rows& grad,
                   const Rows& probabilities, const char* target, const char* weight) const {
    RowLossArgs a{};
    const int kind = number % 4, variant = number / 4;
    a.shape = shape;
    a.valid = a.row_valid = kind == 0 ? case_.classes : valid();
    a.logits = logits;
    if (kind == 0) a.target = reinterpret_cast<const int64_t*>(target), a.per_row = 1;
    if (kind == 1) a.target = reinterpret_cast<const int64_t*>(several_.data), a.per_row = kIndices;
    if (kind == 1 && variant != 3) a.target_probs = by_index_.data;
    if (kind == 2) a.probabilities = probabilities;
    a.weight = variant % 2 == 1 ? weight : nullptr;
    a.row_weight = variant == 2 ? by_row_.data : nullptr;
    a.options.label_smoothing = variant == 1 ? 0.1 : 0;
    a.options.softcap = variant == 2 ? 5 : 0;
    a.options.logit_scale = variant == 3 ? 0.5 : 1;
    a.options.z_loss = variant == 1 ? 0.01 : 0;
    a.loss = kind == 3 ? nullptr : by_result_[0].data;
    a.log_prob = kind < 2 ? by_result_[1].data : nullptr;
    a.lse = by_result_[2].data;
    a.entropy = variant > 0 ? by_result_[3].data : nullptr;
    a.argmax = variant > 1 ? reinterpret_cast<int64_t*>(argmax_.data) : nullptr;
    a.correct = kind == 0 && variant != 2 ? reinterpret_cast<bool*>(correct_.data) : nullptr;
    a.grad = grad;
    a.grad_factor = kind == 3 || (kind == 1 && variant == 3) ? 0 : 0.37;
    a.of_loss = variant == 3 ? by_row_.data : nullptr;
    a.of_log_prob = kind < 2 && variant > 1 ? by_index_.data : nullptr;
    a.of_lse = variant == 3 || kind == 3 ? by_row_.data : nullptr;
    a.of_entropy = variant > 1 ? by_row_.data : nullptr;
    return a;
  }
  /// The arguments for the numbers of the rows, and for the gradient of some classes from these numbers.
  RowLossArgs numbers(const RowLossArgs& of) const {
    RowLossArgs a = of;
    a.grad = {};
    a.parts = numbers_.data;
    a.parts_step = case_.rows;
    a.options.outputs = kEntropy;
    return a;
  }
  RowLossArgs some_classes(const RowLossArgs& of, int64_t begin, int64_t end, size_t size) const {
    RowLossArgs a = of;
    a.shape.classes = end - begin;
    a.valid = std::clamp<int64_t>(of.valid - begin, 0, end - begin);
    a.first = begin;
    a.whole = numbers_.data;
    a.whole_step = case_.rows;
    for (Rows* rows : {&a.logits, &a.probabilities, &a.grad}) {
      if (rows->data != nullptr) {
        rows->data = static_cast<char*>(rows->data) + static_cast<size_t>(begin * rows->class_stride) * size;
      }
    }
    a.loss = a.log_prob = a.lse = a.entropy = nullptr;
    a.argmax = nullptr;
    a.correct = nullptr;
    return a;
  }
  std::string numbers_bytes() const { return numbers_.bytes(); }
  /// The bytes of the results.
  std::string bytes() const {
    std::string all;
    for (const Guarded& result : by_result_) all += result.bytes();
    // Numbers of classes, as numbers that are no NaNs.
    for (int64_t r = 0; r < case_.rows; ++r) {
      int64_t found;
      memcpy(&found, argmax_.data + r * sizeof(found), sizeof(found));
      char number[8];
      put(number, computed_, static_cast<double>(found) + 0.5 * correct_.data[r]);
      all.append(number, size_);
    }
    return all;
  }
  int computed() const { return computed_; }

 private:
  /// The last classes are padding.
  int64_t valid() const { return case_.classes > 3 ? case_.classes - 3 : 1; }
  Case case_;
  int computed_;
  size_t size_;
  Guarded several_, by_index_, by_row_, argmax_, correct_, numbers_;
  const Guarded by_result_[4] = {{case_.rows * size_, case_.at_end},
                                 {case_.rows * kIndices * size_, case_.at_end},
                                 {case_.rows * size_, case_.at_end},
                                 {case_.rows * size_, case_.at_end}};
};

Results run(const KernelTable& table, const Case& c, How how, const std::string& logits,
            const std::string& others, const std::vector<int64_t>& targets) {
  const bool stream = how == kStreamed;
  const Kernels& kernels = *table.by_type[c.type];
  const size_t size = kSize[c.type], bytes = logits.size(), compute = c.type == kDouble ? 8 : 4;
  const Shape shape{c.classes, c.inner};
  const Caller call(table, c, how == kShared);
  const auto rows = [&](char* data) {
    if (c.inner == 1) return Rows{data, c.classes, 0, 1};
    return Rows{data, c.classes * c.inner, 1, c.classes == 1 ? 1 : c.inner};
  };
  Guarded x(bytes, c.at_end), p(bytes, c.at_end), y(bytes, c.at_end), d(bytes, c.at_end);
  Guarded t(c.rows * sizeof(int64_t), c.at_end), loss(c.rows * compute, c.at_end);
  Guarded weight(c.classes * size, c.at_end), factor(c.rows * compute, c.at_end);
  memcpy(p.data, others.data(), bytes);
  memcpy(weight.data, others.data(), c.classes * size);
  memcpy(t.data, targets.data(), c.rows * sizeof(int64_t));
  for (int64_t r = 0; r < c.rows; ++r)
    put(factor.data + r * compute, c.type == kDouble ? kDouble : kFloat, r % 5);

  Results out;
  const int computed = c.type == kDouble ? kDouble : kFloat;
  const auto keep = [&](const char* op, const char* way, const Guarded& result) {
    out.push_back({op, way, c.type, result.bytes()});
  };
  const auto keep_computed = [&](const char* op, const char* way, const Guarded& result) {
    out.push_back({op, way, computed, result.bytes()});
  };
  const auto fresh = [&] { memcpy(x.data, logits.data(), bytes); };
  fresh();
  const ForwardArgs forward{shape, rows(x.data), rows(y.data), stream};
  const BackwardArgs backward{shape, rows(p.data), rows(y.data), rows(d.data), stream};
  keep("softmax", call(kernels.softmax, forward), y);
  keep("softmax_backward", call(kernels.softmax_backward, backward), d);
  keep("log_softmax", call(kernels.log_softmax, forward), y);
  keep("log_softmax_backward", call(kernels.log_softmax_backward, backward), d);
  // Upstream gradients of a sum over classes, and of a sum over everything.
  for (const Rows& spread : {Rows{p.data, c.inner, c.inner == 1 ? 0 : 1, 0}, Rows{p.data, 0, 0, 0}}) {
    const BackwardArgs of_sum{shape, spread, rows(y.data), rows(d.data), stream};
    keep("softmax_backward", call(kernels.softmax_backward, of_sum), d);
    keep("log_softmax_backward", call(kernels.log_softmax_backward, of_sum), d);
  }
  if (c.type == kHalf) {
    keep_computed("mass", call(kernels.mass, MassArgs{shape, rows(p.data), loss.data}), loss);
  }
  keep("scale", call(kernels.scale, ScaleArgs{shape, rows(x.data), rows(d.data), factor.data, 1, stream}), d);
  for (int option = 0; option < 16; ++option) {
    const bool indices = option & 1, smooth = option & 2, weighted = option & 4, over_logits = option & 8;
    fresh();
    CrossEntropyArgs a{};
    a.shape = shape;
    a.logits = rows(x.data);
    if (indices) {
      a.target = reinterpret_cast<const int64_t*>(t.data);
    } else {
      a.probabilities = rows(p.data);
    }
    a.weight = weighted ? weight.data : nullptr;
    a.options.label_smoothing = smooth ? 0.1 : 0;
    a.loss = loss.data;
    a.grad = rows(over_logits ? x.data : d.data);
    a.grad_factor = 0.37;
    a.stream = stream && !over_logits;
    const char* const way = call(kernels.cross_entropy, a);
    keep_computed("cross_entropy", way, loss);
    keep("cross_entropy", way, over_logits ? x : d);
  }
  const RowLossCases cases(c, targets);
  // Every other layout: these cases take as long as all others together.
  const bool takes_row_losses = c.inner == 1 || c.inner == 9 || c.inner == 144;
  for (int number = 0; takes_row_losses && number < RowLossCases::kCases; ++number) {
    const bool over_logits = (number + number / 4) % 2 == 1;
    fresh();
    RowLossArgs a = cases.args(number, shape, rows(x.data), rows(over_logits ? x.data : d.data), rows(p.data),
                               t.data, weight.data);
    a.stream = stream && !over_logits;
    const char* const way = call(kernels.row_losses, a);
    out.push_back({"row_losses", way, computed, cases.bytes()});
    keep("row_losses", way, over_logits ? x : d);
    if (over_logits) continue;
    // The same gradient, of some classes after the other, from the numbers of the whole rows.
    const std::string whole = out.back().bytes;
    RowLossArgs part = cases.numbers(a);
    out.push_back({"row_losses_parts", call(kernels.row_losses, part), computed, cases.numbers_bytes()});
    memset(d.data, 0x5a, bytes);
    const int64_t first = c.classes * 2 / 5;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{first, c.classes}, {0, first}}) {
      if (begin == end) continue;
      part = cases.some_classes(a, begin, end, size);
      call(kernels.row_losses, part);
    }
    if (!same({"", "", c.type, whole}, {"", "", c.type, d.bytes()})) {
      printf("row_losses: the gradient of some classes differs, %s, case %d, %lld x %lld classes\n",
             table.isa, number, static_cast<long long>(c.rows), static_cast<long long>(c.classes));
      abort();
    }
  }
  const double total = kernels.sum_losses(loss.data, c.rows);
  const TargetCounts counts = kernels.count_targets(targets.data(), c.rows, c.classes - 1, -100);
  out.push_back({"sum_losses", "all", kDouble, {reinterpret_cast<const char*>(&total), sizeof(total)}});
  // Two counts below 2^31: as floats they are no NaNs.
  out.push_back({"count_targets", "all", kFloat, {reinterpret_cast<const char*>(&counts), sizeof(counts)}});
  return out;
}

/// All results of an op that went one way, of rows of up to `classes` classes and of more than the next lower
/// number in kUpTo.
struct Hash {
  int64_t classes;
  std::string op, way;
  uint64_t value;
};
using Hashes = std::vector<Hash>;

constexpr int64_t kUpTo[] = {47, 127, 5000};
const Hashes kept = {
#include "sweep.hashes"
};

void add(Hashes& hashes, int64_t classes, const Results& results) {
  const int64_t up_to = *std::lower_bound(std::begin(kUpTo), std::end(kUpTo), classes);
  for (const Result& result : results) {
    const auto is_its = [&](const Hash& h) {
      return h.classes == up_to && h.op == result.op && h.way == result.way;
    };
    auto hash = std::find_if(hashes.begin(), hashes.end(), is_its);
    if (hash == hashes.end()) hash = hashes.insert(hashes.end(), {up_to, result.op, result.way, 0});
    for (size_t i = 0; i < result.bytes.size(); i += kSize[result.type]) {
      hash->value = mixed(hash->value + 1 + bits_of(&result.bytes[i], result.type));
    }
  }
}

/// Whether all of a's are among b's, those of rows of more than `longest` classes left out.
bool same(const Hashes& a, const Hashes& b, int64_t longest, const char* isa) {
  bool equal = true;
  for (const Hash& hash : a) {
    if (hash.classes > longest) continue;
    const bool found = std::any_of(b.begin(), b.end(), [&](const Hash& other) {
      return other.classes == hash.classes && other.op == hash.op && other.way == hash.way &&
             other.value == hash.value;
    });
    if (!found) {
      printf("%s differs from sweep.hashes: %s by way of %s, up to %ld classes\n", isa, hash.op.c_str(),
             hash.way.c_str(), static_cast<long>(hash.classes));
      equal = false;
    }
  }
  return equal;
}

void print(Hashes hashes) {
  std::sort(hashes.begin(), hashes.end(), [](const Hash& a, const Hash& b) {
    return std::tie(a.classes, a.op, a.way) < std::tie(b.classes, b.op, b.way);
  });
  for (const Hash& hash : hashes) {
    printf("{%ld, \"%s\", \"%s\", 0x%016llx},\n", static_cast<long>(hash.classes), hash.op.c_str(),
           hash.way.c_str(), static_cast<unsigned long long>(hash.value));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t longest = argc > 1 ? atoll(argv[1]) : 5000;
  const bool prints_hashes = argc > 2 && strcmp(argv[2], "hashes") == 0;
  const int64_t shortest = argc > 3 && strcmp(argv[2], "from") == 0 ? atoll(argv[3]) : 1;
  std::vector<const KernelTable*> tables;
  for (const Isa& isa : isas()) {
    if (isa.reason.empty()) tables.push_back(isa.table);
  }
  const KernelTable& reference = *tables.back();  // portable
  std::vector<Hashes> hashes(tables.size());
  long compared = 0, cases = 0;
  for (int type = 0; type < kElementTypes; ++type) {
    for (int64_t classes :
         {1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 21, 31, 32, 33, 47, 64, 65, 127, 1000, 2049, 5000}) {
      if (classes < shortest || classes > longest) continue;
      // 144, 150: more rows of a slice than all blocks of lanes hold, with cache lines of a class that begin
      // where a vector does, and that don't.
      for (int64_t inner : {1, 3, 9, 23, 144, 150}) {
        if (inner > 23 && classes > 127) continue;
        for (int n = 0; n < 6; ++n) {
          // 32: the last block of lanes is whole and ends where the tensor ends.
          const int64_t side_by_side = classes > 500 ? 3 : n < 3 ? 37 : 32;
          const int64_t slices = inner == 1 ? side_by_side : classes > 500 || inner > 23 ? 1 : 3;
          const Case c{type, classes, inner, slices * inner, n % 2 == 1, static_cast<Case::Values>(n / 2)};
          const size_t count = static_cast<size_t>(c.rows * classes), size = kSize[type];
          // A case's numbers are its own, whichever cases are computed before it.
          state = mixed(static_cast<uint64_t>(((type * 8192 + classes) * 256 + inner) * 8 + n));
          std::string logits(count * size, '\0'), others(count * size, '\0');
          for (size_t i = 0; i < count; ++i) {
            double v = (uniform() - 0.5) * (c.values == Case::kHurting ? 300 : 10);
            if (c.values == Case::kShifted) v += 5000;
            if (c.values == Case::kHurting && uniform() < 0.02) v = -INFINITY;
            if (c.values == Case::kHurting && uniform() < 0.003) v = NAN;
            put(&logits[i * size], type, v);
            put(&others[i * size], type, uniform());
          }
          std::vector<int64_t> targets(static_cast<size_t>(c.rows));
          for (int64_t& y : targets) {
            y = uniform() < 0.15 ? -100 : static_cast<int64_t>(uniform() * static_cast<double>(classes));
          }
          const Results expected = run(reference, c, kByRows, logits, others, targets);
          ++cases;
          for (size_t k = 0; k < kHows * tables.size(); ++k) {
            const KernelTable* table = tables[k / kHows];
            const How how = static_cast<How>(k % kHows);
            if (how == kShared && (inner != 1 || classes <= kChunkClasses)) continue;
            const Results found = run(*table, c, how, logits, others, targets);
            for (size_t i = 0; i < expected.size(); ++i) {
              if (same(expected[i], found[i])) continue;
              printf("%s and %s%s differ: type %d, %ld classes, inner %ld, values %d, result %zu, %s\n",
                     reference.isa, table->isa,
                     how == kShared     ? " in chunks"
                     : how == kStreamed ? " streamed"
                                        : "",
                     type, static_cast<long>(classes), static_cast<long>(inner), c.values, i,
                     found[i].op.c_str());
              return 1;
            }
            if (how != kStreamed) add(hashes[k / kHows], classes, found);
            ++compared;
          }
        }
      }
    }
  }
  if (prints_hashes) {
    print(hashes[0]);
    return 0;
  }
  bool equal = true;
  for (size_t k = 0; shortest == 1 && k < tables.size(); ++k) {
    equal &= same(hashes[k], kept, longest, tables[k]->isa) && same(kept, hashes[k], longest, tables[k]->isa);
  }
  if (!equal) return 1;
  printf("%ld cases, %ld runs, all bits equal%s:", cases, compared,
         shortest == 1 ? " and those of sweep.hashes" : "");
  for (const KernelTable* table : tables) printf(" %s", table->isa);
  printf("\n");
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// The kernels of every instruction set that runs here, on a sweep of shapes, layouts, types and options,
// without torch or Python: every tensor stands between two pages that nobody may touch, once against the
// first and once against the second, and all instruction sets have to agree in every bit, long rows in shares
// and results written past the caches too. Prints what was compared; exit code 1 and the case where bits
// differ.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
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
  void copy_to(std::vector<std::string>& out) const { out.emplace_back(data, bytes_); }
  char* data;

 private:
  char* base_;
  size_t size_, bytes_;
};

uint64_t state = 1;
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

bool is_nan(const char* p, size_t size, int type) {
  if (size == 8) {
    double x;
    memcpy(&x, p, 8);
    return x != x;
  }
  if (size == 4) {
    float x;
    memcpy(&x, p, 4);
    return x != x;
  }
  uint16_t x;
  memcpy(&x, p, 2);
  return (x & 0x7fff) > (type == kBFloat16 ? 0x7f80 : 0x7c00);
}

struct Case {
  int type;
  int64_t classes, inner, rows;
  bool at_end;
  enum Values { kPlain, kHurting, kShifted } values;
};

/// Results of one instruction set: tensors of the type, and what is in the compute type.
struct Results {
  std::vector<std::string> tensors, computed;
};

/// Rows by rows, or each row in shares.
class Caller {
 public:
  Caller(const KernelTable& table, const Case& c, bool shared, int strided)
      : table_(table), case_(c), shares_(shared ? (c.classes + kShareClasses - 1) / kShareClasses : 0) {
    scratch_.resize(std::max(scratch_bytes({c.classes, c.inner}, c.rows, kSize[c.type], strided),
                             shares_ > 0 ? shared_bytes(c.classes, static_cast<int>(shares_)) : 0));
  }

  template <class Args>
  void operator()(const Kernel<Args>& kernel, const Args& args) {
    if (shares_ == 0 || kernel.share == nullptr) {
      check(kernel.rows(args, {0, case_.rows, scratch_.data()}));
      return;
    }
    const int count = static_cast<int>(shares_);
    for (int64_t r = 0; r < case_.rows; ++r) {
      for (int step = 0; step < kernel.steps; ++step) {
        for (int i = count - 1; i >= 0; --i) {
          const int64_t begin = i * kShareClasses;
          check(kernel.share(
              args, {r, begin, std::min(begin + kShareClasses, case_.classes), i, count, scratch_.data()},
              step));
        }
      }
    }
  }

 private:
  void check(const Ran& who) const {
    if (strcmp(who.isa, table_.isa) != 0) abort();
  }

  const KernelTable& table_;
  const Case& case_;
  int64_t shares_;
  std::vector<char> scratch_;
};

enum How { kByRows, kShared, kStreamed, kHows };

Results run(const KernelTable& table, const Case& c, How how, const std::string& logits,
            const std::string& others, const std::vector<int64_t>& targets) {
  const bool stream = how == kStreamed;
  const Kernels& kernels = *table.by_type[c.type];
  const size_t size = kSize[c.type], bytes = logits.size(), compute = c.type == kDouble ? 8 : 4;
  const Shape shape{c.classes, c.inner};
  const int strided = c.inner == 1 ? 0 : 3;
  Caller call(table, c, how == kShared, strided), call_spread(table, c, false, strided == 0 ? 1 : strided);
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
  const auto fresh = [&] { memcpy(x.data, logits.data(), bytes); };
  fresh();
  call(kernels.softmax, ForwardArgs{shape, rows(x.data), rows(y.data), stream});
  y.copy_to(out.tensors);
  call(kernels.softmax_backward, BackwardArgs{shape, rows(p.data), rows(y.data), rows(d.data), stream});
  d.copy_to(out.tensors);
  call(kernels.log_softmax, ForwardArgs{shape, rows(x.data), rows(y.data), stream});
  y.copy_to(out.tensors);
  call(kernels.log_softmax_backward, BackwardArgs{shape, rows(p.data), rows(y.data), rows(d.data), stream});
  d.copy_to(out.tensors);
  // Upstream gradients of a sum over classes, and of a sum over everything.
  for (const Rows& spread : {Rows{p.data, c.inner, c.inner == 1 ? 0 : 1, 0}, Rows{p.data, 0, 0, 0}}) {
    call_spread(kernels.softmax_backward, BackwardArgs{shape, spread, rows(y.data), rows(d.data), stream});
    d.copy_to(out.tensors);
    call_spread(kernels.log_softmax_backward,
                BackwardArgs{shape, spread, rows(y.data), rows(d.data), stream});
    d.copy_to(out.tensors);
  }
  if (c.type == kHalf) {
    call(kernels.mass, MassArgs{shape, rows(p.data), loss.data});
    loss.copy_to(out.computed);
  }
  call(kernels.scale, ScaleArgs{shape, rows(x.data), rows(d.data), factor.data, 1, stream});
  d.copy_to(out.tensors);
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
    call(kernels.cross_entropy, a);
    loss.copy_to(out.computed);
    (over_logits ? x : d).copy_to(out.tensors);
  }
  const double total = kernels.sum_losses(loss.data, c.rows);
  const TargetCounts counts = kernels.count_targets(targets.data(), c.rows, c.classes - 1, -100);
  if (c.type == kDouble) out.computed.emplace_back(reinterpret_cast<const char*>(&total), 8);
  out.computed.emplace_back(reinterpret_cast<const char*>(&counts), sizeof(counts));
  return out;
}

bool same(const std::vector<std::string>& a, const std::vector<std::string>& b, size_t size, int type,
          size_t* which) {
  for (size_t k = 0; k < a.size(); ++k) {
    for (size_t i = 0; i < a[k].size(); i += size) {
      const char *u = &a[k][i], *v = &b[k][i];
      // The payload of a NaN is the CPU's.
      if (memcmp(u, v, size) != 0 && !(is_nan(u, size, type) && is_nan(v, size, type))) {
        *which = k;
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t longest = argc > 1 ? atoll(argv[1]) : 5000;
  std::vector<const KernelTable*> tables;
  for (const Isa& isa : isas()) {
    if (isa.reason.empty()) tables.push_back(isa.table);
  }
  const KernelTable& reference = *tables.back();  // portable
  long compared = 0, cases = 0;
  for (int type = 0; type < kElementTypes; ++type) {
    for (int64_t classes :
         {1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 21, 31, 32, 33, 47, 64, 65, 127, 1000, 2049, 5000}) {
      if (classes > longest) continue;
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
            if (how == kShared && (inner != 1 || classes <= kShareClasses)) continue;
            const Results found = run(*table, c, how, logits, others, targets);
            size_t which = 0;
            const size_t compute = type == kDouble ? 8 : 4;
            if (!same(expected.tensors, found.tensors, size, type, &which) ||
                !same(expected.computed, found.computed, compute, type, &which)) {
              printf("%s and %s%s differ: type %d, %ld classes, inner %ld, values %d, result %zu\n",
                     reference.isa, table->isa,
                     how == kShared     ? " in shares"
                     : how == kStreamed ? " streamed"
                                        : "",
                     type, static_cast<long>(classes), static_cast<long>(inner), c.values, which);
              return 1;
            }
            ++compared;
          }
        }
      }
    }
  }
  printf("%ld cases, %ld runs, all bits equal:", cases, compared);
  for (const KernelTable* table : tables) printf(" %s", table->isa);
  printf("\n");
  return 0;
}

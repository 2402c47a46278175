// SPDX-License-Identifier: Apache-2.0
// exp and log over every float that they can meet, and over every bfloat16 and float16, against double
// precision (double: a sample, against long double), on every instruction set that runs here. Without torch
// or Python, through the kernels as they are exported:
//   the gradient of log_softmax at an output y is exp(y) where the upstream gradient is (0, -1);
//   log_softmax of a row (0, ..., 0, x) with k zeros is -log(1 + q) at a zero, q = (k - 1) + exp(x).
// Prints the worst errors; exit code 1 where one is above its bound. Argument: look at every n-th float only.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "../../csrc/cpu/dispatch.h"

using namespace softkern;
using namespace softkern::cpu;

namespace {

constexpr int64_t kChunk = 4096;  // rows a call

float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

/// A unit in the last place, for a type with so many bits of mantissa and so small a subnormal.
double ulp_of(double want, int mantissa, int least) {
  uint64_t bits;
  memcpy(&bits, &want, 8);
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023 - mantissa;
  return std::ldexp(1.0, exponent < least ? least : exponent);
}

/// Divided as long double: a fraction of the smallest double is none.
double in_double_ulp(double got, long double want) {
  return static_cast<double>(std::fabs(got - want) / ulp_of(static_cast<double>(want), 52, -1074));
}

double widen_bits(uint16_t bits, int type) {
  if (type == kBFloat16) return from_bits(static_cast<uint32_t>(bits) << 16);
  const int exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  const double size = exponent == 31  ? (mantissa != 0 ? NAN : INFINITY)
                      : exponent == 0 ? std::ldexp(mantissa, -24)
                                      : std::ldexp(mantissa + 1024, exponent - 25);
  return bits >> 15 ? -size : size;
}

/// The largest of what several threads report.
class Worst {
 public:
  void see(double error) {
    double seen = value_.load();
    while (!(error <= seen) && !value_.compare_exchange_weak(seen, error)) {
    }
  }
  double value() const { return value_; }

 private:
  std::atomic<double> value_{0};
};

Rows side_by_side(void* data, int64_t classes) { return {data, classes, 0, 1}; }

/// exp(y) of n numbers by log_softmax's backward. company: the second class of each row, which decides
/// whether the kernel takes the short exp (terms that are normal numbers) or the one for all numbers.
template <class T>
void exp_by_kernel(const Kernels& kernels, const T* y, T* result, int64_t n, T zero, T minus_one, T company) {
  std::vector<T> ys(2 * n), gs(2 * n), dx(2 * n);
  for (int64_t i = 0; i < n; ++i)
    ys[2 * i] = y[i], ys[2 * i + 1] = company, gs[2 * i] = zero, gs[2 * i + 1] = minus_one;
  const BackwardArgs args{
      {2, 1}, side_by_side(gs.data(), 2), side_by_side(ys.data(), 2), side_by_side(dx.data(), 2)};
  kernels.log_softmax_backward.rows(args, {0, n, nullptr});
  for (int64_t i = 0; i < n; ++i) result[i] = dx[2 * i];
}

/// -log_softmax at the zero of rows (0, ..., 0, x) with `zeros` zeros.
template <class T>
void log_by_kernel(const Kernels& kernels, const T* x, T* result, int64_t n, int zeros) {
  const int64_t classes = zeros + 1;
  std::vector<T> in(classes * n), out(classes * n);
  for (int64_t i = 0; i < n; ++i) in[classes * i + zeros] = x[i];
  const ForwardArgs args{{classes, 1}, side_by_side(in.data(), classes), side_by_side(out.data(), classes)};
  kernels.log_softmax.rows(args, {0, n, nullptr});
  for (int64_t i = 0; i < n; ++i) result[i] = -out[classes * i];
}

struct Errors {
  Worst exp, exp_any, log;
};

/// Floats with the bits first, first + step, ... below end; for those up to 0 the logarithm too.
void floats(const KernelTable& table, uint32_t first, uint32_t end, uint32_t step, Errors& errors) {
  const Kernels& kernels = *table.by_type[kFloat];
  std::vector<float> x(kChunk), e(kChunk), log(kChunk);
  for (uint64_t bits = first; bits < end;) {
    int64_t n = 0;
    for (; n < kChunk && bits < end; bits += step) x[n++] = from_bits(static_cast<uint32_t>(bits));
    for (const bool any : {false, true}) {
      exp_by_kernel(kernels, x.data(), e.data(), n, 0.0f, -1.0f, any ? -200.0f : 0.0f);
      Worst& worst = any ? errors.exp_any : errors.exp;
      for (int64_t i = 0; i < n; ++i) {
        const double want = std::exp(static_cast<double>(x[i]));
        worst.see(std::fabs(e[i] - want) / ulp_of(want, 23, -149));
      }
    }
    if (first >> 31 == 0) continue;
    for (const int zeros : {1, 2, 9, 31}) {
      log_by_kernel(kernels, x.data(), log.data(), n, zeros);
      for (int64_t i = 0; i < n; ++i) {
        const float q = static_cast<float>(zeros - 1) + e[i];
        const double want = std::log1p(static_cast<double>(q));
        errors.log.see(std::fabs(log[i] - want) / ulp_of(want, 23, -149));
      }
      if (step == 1) break;  // q up to 1, exhaustively; the larger ones have fewer values and are sampled
    }
  }
}

void doubles(const KernelTable& table, uint64_t seed, int64_t count, Errors& errors) {
  const Kernels& kernels = *table.by_type[kDouble];
  std::vector<double> x(kChunk), e(kChunk), log(kChunk);
  for (int64_t done = 0; done < count; done += kChunk) {
    for (double& v : x) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      v = -std::ldexp(static_cast<double>(seed >> 11), -53 + static_cast<int>(seed % 40) - 29);  // up to 2^10
    }
    for (const bool any : {false, true}) {
      exp_by_kernel(kernels, x.data(), e.data(), kChunk, 0.0, -1.0, any ? -800.0 : 0.0);
      for (int64_t i = 0; i < kChunk; ++i) {
        const long double want = std::exp(static_cast<long double>(x[i]));
        (any ? errors.exp_any : errors.exp).see(in_double_ulp(e[i], want));
      }
    }
    log_by_kernel(kernels, x.data(), log.data(), kChunk, 1);
    for (int64_t i = 0; i < kChunk; ++i) {
      const long double want = std::log1p(static_cast<long double>(e[i]));
      errors.log.see(in_double_ulp(log[i], want));
    }
  }
}

/// All 65,536 numbers; those whose exp is not finite in the type have to give what rounding gives.
bool sixteen_bits(const KernelTable& table, int type, Errors& errors) {
  const int mantissa = type == kBFloat16 ? 7 : 10, least = type == kBFloat16 ? -133 : -24;
  const double most = type == kBFloat16 ? 0x1.ffp127 : 65520;  // from here on it rounds to infinity
  const uint16_t minus_one = type == kBFloat16 ? 0xbf80 : 0xbc00, low = type == kBFloat16 ? 0xc348 : 0xda40;
  std::vector<uint16_t> x(65536), e(65536);
  for (int i = 0; i < 65536; ++i) x[i] = static_cast<uint16_t>(i);
  for (const bool any : {false, true}) {
    exp_by_kernel<uint16_t>(*table.by_type[type], x.data(), e.data(), 65536, 0, minus_one,
                            any ? low : uint16_t(0));
    for (int i = 0; i < 65536; ++i) {
      const double arg = widen_bits(x[i], type), want = std::exp(arg), got = widen_bits(e[i], type);
      const bool nan = std::isnan(arg);
      if (nan || want >= most) {
        if (nan ? !std::isnan(got) : got != INFINITY) {
          printf("%s: exp(%g) in 16 bits is %g\n", table.isa, arg, got);
          return false;
        }
        continue;
      }
      (any ? errors.exp_any : errors.exp).see(std::fabs(got - want) / ulp_of(want, mantissa, least));
    }
  }
  return true;
}

/// log_bound 0: nothing was said of log.
bool report(const char* isa, const char* what, const Errors& errors, double exp_bound, double log_bound) {
  const double exp = std::fmax(errors.exp.value(), errors.exp_any.value());
  const bool good = exp <= exp_bound && errors.log.value() <= log_bound;
  printf("%-9s %-18s exp %.4f (any range %.4f) of %.4f ulp", isa, what, errors.exp.value(),
         errors.exp_any.value(), exp_bound);
  if (log_bound > 0) printf(", log %.4f of %.4f ulp", errors.log.value(), log_bound);
  printf(good ? "\n" : "  <-- above its bound\n");
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  const uint32_t step = argc > 1 ? static_cast<uint32_t>(atoll(argv[1])) : 1;
  if (step == 0) {
    printf("expected a positive number of floats to go on by, got %s\n", argv[1]);
    return 2;
  }
  bool good = true;
  for (const Isa& isa : isas()) {
    if (!isa.reason.empty() || isa.table->by_type[kFloat]->softmax.rows == nullptr) continue;
    const KernelTable& table = *isa.table;
    Errors negative, positive, wide, bfloat16, half;
    // -0 to -104, below which exp is less than half of the smallest float; 0 to 88.72, above which it is
    // infinite.
    const std::vector<std::function<void()>> work = {
        [&] { floats(table, 0x80000000u, 0xc1000000u, step, negative); },
        [&] { floats(table, 0xc1000000u, 0xc2d00000u, step, negative); },
        [&] { floats(table, 0u, 0x42b17218u, step, positive); },
        [&] { doubles(table, 1, 20000000 / step, wide); }};
    std::vector<std::thread> threads;
    for (const auto& part : work) threads.emplace_back(part);
    for (std::thread& thread : threads) thread.join();
    good &= sixteen_bits(table, kBFloat16, bfloat16) && sixteen_bits(table, kHalf, half);
    good &= report(isa.table->isa, "float, x <= 0", negative, 1, 1);
    good &= report(isa.table->isa, "float, x >= 0", positive, 1, 0);
    good &= report(isa.table->isa, "double, a sample", wide, 1, 1);
    // Rounded from float's exp: half a unit, and what an ulp of float adds to it.
    good &= report(isa.table->isa, "bfloat16", bfloat16, 0.5 + 0x1p-15, 0);
    good &= report(isa.table->isa, "float16", half, 0.5 + 0x1p-12, 0);
  }
  return good ? 0 : 1;
}

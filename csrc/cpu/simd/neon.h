// SPDX-License-Identifier: Apache-2.0
// NEON as every 64-bit ARM CPU has it: four vectors hold the lanes, the first lanes first.
#pragma once

#include "../../common/log_constants.h"
#include "contract.h"

namespace softkern::cpu {
namespace {

/// One of the four vectors: the operations whose names differ between float and double.
template <class A>
struct Quarter;

template <>
struct Quarter<float> {
  using Vec = float32x4_t;
  using Bits = uint32x4_t;
  static constexpr int kMantissaBits = 23, kExponentBias = 127;

  static SK_INLINE Vec broadcast(float a) { return vdupq_n_f32(a); }
  static SK_INLINE Bits integers(uint32_t a) { return vdupq_n_u32(a); }
  static SK_INLINE Bits bits(Vec v) { return vreinterpretq_u32_f32(v); }
  static SK_INLINE Vec numbers(Bits b) { return vreinterpretq_f32_u32(b); }
  static SK_INLINE Vec select(Bits mask, Vec x, Vec y) { return vbslq_f32(mask, x, y); }
  static SK_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
  static SK_INLINE Bits equal(Vec a, Vec b) { return vceqq_f32(a, b); }
  static SK_INLINE Bits less(Vec a, Vec b) { return vcltq_f32(a, b); }
  static SK_INLINE Bits at_least(Vec a, Vec b) { return vcgeq_f32(a, b); }
  static SK_INLINE Bits to_exponent(Bits n) { return vshlq_n_u32(n, kMantissaBits); }
  static SK_INLINE Vec exponent(Bits b) {
    return vcvtq_f32_s32(vshrq_n_s32(vreinterpretq_s32_u32(b), kMantissaBits));
  }
  static SK_INLINE Vec load(const float* p) { return vld1q_f32(p); }
  static SK_INLINE Vec load(const BFloat16* p) {
    return numbers(vshlq_n_u32(vmovl_u16(vld1_u16(&p->bits)), 16));
  }
  static SK_INLINE Vec load(const Half* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits))); }
  static SK_INLINE void store(float* p, Vec v) { vst1q_f32(p, v); }
  static SK_INLINE void store(BFloat16* p, Vec v) { vst1_u16(&p->bits, vshrn_n_u32(to_bfloat16(v), 16)); }
  static SK_INLINE void store(Half* p, Vec v) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  /// In the upper halves.
  static SK_INLINE Bits to_bfloat16(Vec v) {
    const Bits b = bits(v);
    // Plus the last bit that remains: a tie goes to an even number.
    const Bits rounded = vsraq_n_u32(vaddq_u32(b, integers(0x7fff)), vshlq_n_u32(b, 15), 31);
    return vbslq_u32(equal(v, v), rounded, integers(0x7fc00000));
  }
  static SK_INLINE void transpose(Vec (&r)[4]) {
    const float64x2_t a = doubles(vtrn1q_f32(r[0], r[1])), b = doubles(vtrn2q_f32(r[0], r[1]));
    const float64x2_t c = doubles(vtrn1q_f32(r[2], r[3])), d = doubles(vtrn2q_f32(r[2], r[3]));
    r[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    r[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    r[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    r[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
  }
  static SK_INLINE float reduce_add(Vec v) { return vpadds_f32(vadd_f32(vget_low_f32(v), vget_high_f32(v))); }
  static SK_INLINE float reduce_max(Vec v) {
    const float32x2_t low = vget_low_f32(v), high = vget_high_f32(v);
    const float32x2_t most = vbsl_f32(vcgt_f32(low, high), low, high);
    const float first = vget_lane_f32(most, 0), second = vget_lane_f32(most, 1);
    return first > second ? first : second;
  }

 private:
  static SK_INLINE float64x2_t doubles(Vec v) { return vreinterpretq_f64_f32(v); }
};

template <>
struct Quarter<double> {
  using Vec = float64x2_t;
  using Bits = uint64x2_t;
  static constexpr int kMantissaBits = 52, kExponentBias = 1023;

  static SK_INLINE Vec broadcast(double a) { return vdupq_n_f64(a); }
  static SK_INLINE Bits integers(uint64_t a) { return vdupq_n_u64(a); }
  static SK_INLINE Bits bits(Vec v) { return vreinterpretq_u64_f64(v); }
  static SK_INLINE Vec numbers(Bits b) { return vreinterpretq_f64_u64(b); }
  static SK_INLINE Vec select(Bits mask, Vec x, Vec y) { return vbslq_f64(mask, x, y); }
  static SK_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f64(c, a, b); }
  static SK_INLINE Bits equal(Vec a, Vec b) { return vceqq_f64(a, b); }
  static SK_INLINE Bits less(Vec a, Vec b) { return vcltq_f64(a, b); }
  static SK_INLINE Bits at_least(Vec a, Vec b) { return vcgeq_f64(a, b); }
  static SK_INLINE Bits to_exponent(Bits n) { return vshlq_n_u64(n, kMantissaBits); }
  static SK_INLINE Vec exponent(Bits b) {
    return vcvtq_f64_s64(vshrq_n_s64(vreinterpretq_s64_u64(b), kMantissaBits));
  }
  static SK_INLINE Vec load(const double* p) { return vld1q_f64(p); }
  static SK_INLINE void store(double* p, Vec v) { vst1q_f64(p, v); }
  static SK_INLINE void transpose(Vec (&r)[2]) {
    const Vec a = r[0], b = r[1];
    r[0] = vtrn1q_f64(a, b);
    r[1] = vtrn2q_f64(a, b);
  }
  static SK_INLINE double reduce_add(Vec v) { return vpaddd_f64(v); }
  static SK_INLINE double reduce_max(Vec v) {
    const double first = vgetq_lane_f64(v, 0), second = vgetq_lane_f64(v, 1);
    return first > second ? first : second;
  }
};

template <class A>
struct NeonSimd {
  using Number = A;
  static constexpr int kLanes = 64 / sizeof(A), kPiece = 16 / sizeof(A), kWidePiece = kPiece;
  using Q = Quarter<A>;
  // One vector of lanes takes four registers of the CPU's 32, and its exponentials are four chains already.
  static constexpr int kBias = Q::kExponentBias, kInStep = 1;
  using Vec = typename Q::Vec;
  using Bits = typename Q::Bits;
  /// Copied one by one, as in Pair.
  struct Reg {
    Vec of[4];
    Reg() = default;
    SK_INLINE Reg(Vec a, Vec b, Vec c, Vec d) : of{a, b, c, d} {}
    SK_INLINE Reg(const Reg& v) : of{v.of[0], v.of[1], v.of[2], v.of[3]} {}
    SK_INLINE Reg& operator=(const Reg& v) {
      for (int i = 0; i < 4; ++i) of[i] = v.of[i];
      return *this;
    }
  };

  static SK_INLINE Reg broadcast(A a) { return same(Q::broadcast(a)); }
  template <class T>
  static SK_INLINE Reg load(const T* p) {
    return {Q::load(p), Q::load(p + kPiece), Q::load(p + 2 * kPiece), Q::load(p + 3 * kPiece)};
  }
  template <class T>
  static SK_CALL Reg load(const T* p, int n, A fill) {
    Reg v = broadcast(fill);
    int i = 0;
    for (; i < n / kPiece; ++i) v.of[i] = Q::load(p + i * kPiece);
    if (n % kPiece != 0) {
      A lanes[kPiece];
      for (int l = 0; l < kPiece; ++l) lanes[l] = l < n % kPiece ? widen(p[i * kPiece + l]) : fill;
      v.of[i] = Q::load(lanes);
    }
    return v;
  }
  template <class T>
  static SK_INLINE void store(T* p, const Reg& v) {
    for (int i = 0; i < 4; ++i) Q::store(p + i * kPiece, v.of[i]);
  }
  // CPUs for which this matters find by themselves that whole cache lines are written.
  template <class T>
  static SK_INLINE void stream(T* p, const Reg& v) {
    store(p, v);
  }
  static SK_INLINE void fence() {}
  template <class T>
  static SK_CALL void store(T* p, const Reg& v, int n) {
    int i = 0;
    for (; i < n / kPiece; ++i) Q::store(p + i * kPiece, v.of[i]);
    if (n % kPiece != 0) {
      T whole[kPiece];
      Q::store(whole, v.of[i]);
      for (int l = 0; l < n % kPiece; ++l) p[i * kPiece + l] = whole[l];
    }
  }
  static SK_INLINE Reg add(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return x + y; }, a, b);
  }
  static SK_INLINE Reg sub(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return x - y; }, a, b);
  }
  static SK_INLINE Reg mul(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return x * y; }, a, b);
  }
  static SK_INLINE Reg div(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return x / y; }, a, b);
  }
  static SK_INLINE Reg fma(const Reg& a, const Reg& b, const Reg& c) {
    return map([](Vec x, Vec y, Vec z) { return Q::fma(x, y, z); }, a, b, c);
  }
  // Not the instructions fmax and fmin, which return the NaN.
  static SK_INLINE Reg max(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return Q::select(Q::less(y, x), x, y); }, a, b);
  }
  static SK_INLINE Reg min(const Reg& a, const Reg& b) {
    return map([](Vec x, Vec y) { return Q::select(Q::less(x, y), x, y); }, a, b);
  }
  // Masked lanes add +0, which changes nothing: sums start at +0 and are never -0.
  static SK_INLINE Reg add_if_equal(const Reg& s, const Reg& v, const Reg& a, const Reg& b) {
    return map([](Vec t, Vec w, Vec x, Vec y) { return t + Q::numbers(Q::equal(x, y) & Q::bits(w)); }, s, v,
               a, b);
  }
  static SK_INLINE Reg add_unless_equal(const Reg& s, const Reg& v, const Reg& a, const Reg& b) {
    return map([](Vec t, Vec w, Vec x, Vec y) { return t + Q::numbers(~Q::equal(x, y) & Q::bits(w)); }, s, v,
               a, b);
  }
  static SK_INLINE Reg if_equal(const Reg& a, const Reg& b, const Reg& x, const Reg& y) {
    return map([](Vec i, Vec j, Vec v, Vec w) { return Q::select(Q::equal(i, j), v, w); }, a, b, x, y);
  }
  static SK_INLINE Reg if_less(const Reg& a, const Reg& b, const Reg& x, const Reg& y) {
    return map([](Vec i, Vec j, Vec v, Vec w) { return Q::select(Q::less(i, j), v, w); }, a, b, x, y);
  }
  static SK_INLINE bool all_at_least(const Reg& a, const Reg& b) {
    const Bits all = at_least(a, b, 0) & at_least(a, b, 1) & at_least(a, b, 2) & at_least(a, b, 3);
    return vminvq_u32(words(all)) != 0;
  }
  static SK_INLINE bool any_equal(const Reg& a, const Reg& b) {
    const Bits any = equal(a, b, 0) | equal(a, b, 1) | equal(a, b, 2) | equal(a, b, 3);
    return vmaxvq_u32(words(any)) != 0;
  }
  // Small numbers become 0 first: the multiplication of a 0 is never slow, whatever the other lanes hold.
  static SK_INLINE Reg mul_at_least(const Reg& a, const Reg& b, const Reg& least) {
    return map([](Vec x, Vec y, Vec l) { return Q::numbers(~Q::less(x, l) & Q::bits(x)) * y; }, a, b, least);
  }
  // The low bits of t and s hold the integers.
  static SK_INLINE Reg scale(const Reg& v, const Reg& t, const Reg& s) {
    return map([](Vec x, Vec i, Vec j) { return x * Q::numbers(Q::to_exponent(Q::bits(i) - Q::bits(j))); }, v,
               t, s);
  }
  static SK_INLINE Reg split(const Reg& u, Reg& k) {
    k = map([](Vec x) { return Q::exponent(above(x)); }, u);
    const Bits mantissa = Q::integers((uint64_t(1) << Q::kMantissaBits) - 1);
    return map([=](Vec x) { return Q::numbers((above(x) & mantissa) + half_root()); }, u);
  }
  template <class Row>
  static SK_INLINE void load_columns(Row row, Reg (&v)[kPiece]) {
    for (int i = 0; i < 4; ++i) {
      Vec r[kPiece];
      for (int l = 0; l < kPiece; ++l) r[l] = Q::load(row(i * kPiece + l));
      Q::transpose(r);
      for (int c = 0; c < kPiece; ++c) v[c].of[i] = r[c];
    }
  }
  template <class Row>
  static SK_INLINE void store_columns(Row row, const Reg (&v)[kPiece]) {
    for (int i = 0; i < 4; ++i) {
      Vec r[kPiece];
      for (int c = 0; c < kPiece; ++c) r[c] = v[c].of[i];
      Q::transpose(r);
      for (int l = 0; l < kPiece; ++l) Q::store(row(i * kPiece + l), r[l]);
    }
  }
  static SK_INLINE A reduce_add(const Reg& v) {
    return Q::reduce_add((v.of[0] + v.of[2]) + (v.of[1] + v.of[3]));
  }
  static SK_INLINE A reduce_max(const Reg& v) {
    const auto most = [](Vec x, Vec y) { return Q::select(Q::less(y, x), x, y); };
    return Q::reduce_max(most(most(v.of[0], v.of[2]), most(v.of[1], v.of[3])));
  }

 private:
  static SK_INLINE Reg same(Vec v) { return {v, v, v, v}; }
  static SK_INLINE Bits at_least(const Reg& a, const Reg& b, int i) { return Q::at_least(a.of[i], b.of[i]); }
  static SK_INLINE Bits equal(const Reg& a, const Reg& b, int i) { return Q::equal(a.of[i], b.of[i]); }
  static SK_INLINE uint32x4_t words(uint32x4_t b) { return b; }
  static SK_INLINE uint32x4_t words(uint64x2_t b) { return vreinterpretq_u32_u64(b); }
  static SK_INLINE Bits half_root() { return Q::integers(LogConstants<A>::kHalfRoot); }
  static SK_INLINE Bits above(Vec u) { return Q::bits(u) - half_root(); }
  template <class F, class... Regs>
  static SK_INLINE Reg map(F f, const Regs&... v) {
    return {f(v.of[0]...), f(v.of[1]...), f(v.of[2]...), f(v.of[3]...)};
  }
};

template <>
struct Simd<float> : NeonSimd<float> {};
template <>
struct Simd<double> : NeonSimd<double> {};

static_assert(keeps_contract<Simd<float>, float>() && keeps_contract<Simd<double>, double>());

}  // namespace
}  // namespace softkern::cpu

// SPDX-License-Identifier: Apache-2.0
// AVX2, FMA, F16C: two ymm registers hold the lanes, low half first.
#pragma once

#include "../../common/log_constants.h"
#include "contract.h"
#include "pair.h"
#include "words.h"

namespace softkern::cpu {
namespace {

template <>
struct Simd<float> {
  using Number = float;
  static constexpr int kLanes = 16, kPiece = 4, kWidePiece = 4, kBias = 127, kInStep = 1;
  struct Half256 {
    using type = __m256;
  };
  using Reg = Pair<Half256>;

  static SK_INLINE Reg broadcast(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
  static SK_INLINE Reg load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static SK_INLINE Reg load(const BFloat16* p) {
    return {from_bfloat16(bits(p)), from_bfloat16(bits(p + 8))};
  }
  static SK_INLINE Reg load(const Half* p) {
    return {_mm256_cvtph_ps(bits(p)), _mm256_cvtph_ps(bits(p + 8))};
  }
  static SK_INLINE Reg load(const float* p, int n, float fill) {
    const __m256i low = first(n), high = first(n - 8);
    return select(low, high, {_mm256_maskload_ps(p, low), _mm256_maskload_ps(p + 8, high)}, fill);
  }
  // AVX2 has no masked access to 16-bit elements: tails go through a whole vector on the stack.
  template <class T>
  static SK_INLINE Reg load(const T* p, int n, float fill) {
    T whole[kLanes] = {};
    for (int l = 0; l < n; ++l) whole[l] = p[l];
    return select(first(n), first(n - 8), load(whole), fill);
  }
  static SK_INLINE void store(float* p, Reg v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static SK_INLINE void store(BFloat16* p, Reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed(v));
  }
  static SK_INLINE void store(Half* p, Reg v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT));
  }
  static SK_INLINE void stream(float* p, Reg v) {
    _mm256_stream_ps(p, v.low);
    _mm256_stream_ps(p + 8, v.high);
  }
  static SK_INLINE void stream(BFloat16* p, Reg v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), packed(v));
  }
  static SK_INLINE void stream(Half* p, Reg v) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_stream_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT));
  }
  static SK_INLINE void fence() { _mm_sfence(); }
  static SK_INLINE void store(float* p, Reg v, int n) {
    _mm256_maskstore_ps(p, first(n), v.low);
    _mm256_maskstore_ps(p + 8, first(n - 8), v.high);
  }
  template <class T>
  static SK_INLINE void store(T* p, Reg v, int n) {
    T whole[kLanes];
    store(whole, v);
    for (int l = 0; l < n; ++l) p[l] = whole[l];
  }
  static SK_INLINE Reg add(Reg a, Reg b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static SK_INLINE Reg sub(Reg a, Reg b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
  }
  static SK_INLINE Reg mul(Reg a, Reg b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static SK_INLINE Reg div(Reg a, Reg b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
  }
  static SK_INLINE Reg fma(Reg a, Reg b, Reg c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static SK_INLINE Reg max(Reg a, Reg b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  static SK_INLINE Reg min(Reg a, Reg b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
  }
  // Masked lanes add +0, which changes nothing: sums start at +0 and are never -0.
  static SK_INLINE Reg add_if_equal(Reg s, Reg v, Reg a, Reg b) {
    return add(s, {_mm256_and_ps(_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ), v.low),
                   _mm256_and_ps(_mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ), v.high)});
  }
  static SK_INLINE Reg add_unless_equal(Reg s, Reg v, Reg a, Reg b) {
    return add(s, {_mm256_andnot_ps(_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ), v.low),
                   _mm256_andnot_ps(_mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ), v.high)});
  }
  static SK_INLINE Reg if_equal(Reg a, Reg b, Reg x, Reg y) {
    return {_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ)),
            _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ))};
  }
  static SK_INLINE Reg if_less(Reg a, Reg b, Reg x, Reg y) {
    return {_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
            _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
  }
  static SK_INLINE bool all_at_least(Reg a, Reg b) {
    const __m256 both =
        _mm256_and_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GE_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_GE_OQ));
    return _mm256_movemask_ps(both) == 0xff;
  }
  static SK_INLINE bool any_equal(Reg a, Reg b) {
    const __m256 either =
        _mm256_or_ps(_mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ));
    return _mm256_movemask_ps(either) != 0;
  }
  static SK_INLINE Reg mul_at_least(Reg a, Reg b, Reg least) {
    return {mul_at_least(a.low, b.low, least.low), mul_at_least(a.high, b.high, least.high)};
  }
  static SK_INLINE Reg scale(Reg v, Reg t, Reg s) {
    return {scale(v.low, t.low, s.low), scale(v.high, t.high, s.high)};
  }
  static SK_INLINE Reg split(Reg u, Reg& k) { return {split(u.low, k.low), split(u.high, k.high)}; }
  template <class Row>
  static SK_INLINE void load_columns(Row row, Reg (&v)[kPiece]) {
    __m256 low[4], high[4];
    for (int i = 0; i < 4; ++i) {
      low[i] = halves(row(i), row(i + 4));
      high[i] = halves(row(i + 8), row(i + 12));
    }
    transpose(low);
    transpose(high);
    for (int c = 0; c < 4; ++c) v[c] = {low[c], high[c]};
  }
  template <class Row>
  static SK_INLINE void store_columns(Row row, const Reg (&v)[kPiece]) {
    __m256 low[4], high[4];
    for (int c = 0; c < 4; ++c) low[c] = v[c].low, high[c] = v[c].high;
    transpose(low);
    transpose(high);
    if constexpr (sizeof(*row(0)) < sizeof(float)) {
      __m128i w[4][2];
      for (int i = 0; i < 4; ++i) narrow(row(0), low[i], high[i], w[i]);
      store_words(row, w);
    } else {
      for (int i = 0; i < 4; ++i) _mm_storeu_ps(row(i), _mm256_castps256_ps128(low[i]));
      for (int i = 0; i < 4; ++i) _mm_storeu_ps(row(i + 4), _mm256_extractf128_ps(low[i], 1));
      for (int i = 0; i < 4; ++i) _mm_storeu_ps(row(i + 8), _mm256_castps256_ps128(high[i]));
      for (int i = 0; i < 4; ++i) _mm_storeu_ps(row(i + 12), _mm256_extractf128_ps(high[i], 1));
    }
  }
  static SK_INLINE float reduce_add(Reg v) {
    const __m256 w = _mm256_add_ps(v.low, v.high);
    const __m128 x = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
    const __m128 y = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }
  static SK_INLINE float reduce_max(Reg v) {
    const __m256 w = _mm256_max_ps(v.low, v.high);
    const __m128 x = _mm_max_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
    const __m128 y = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }

 private:
  static SK_INLINE __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static SK_INLINE Reg select(__m256i low, __m256i high, Reg v, float fill) {
    const __m256 other = _mm256_set1_ps(fill);
    return {_mm256_blendv_ps(other, v.low, _mm256_castsi256_ps(low)),
            _mm256_blendv_ps(other, v.high, _mm256_castsi256_ps(high))};
  }
  static SK_INLINE __m128i bits(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static SK_INLINE __m256 from_bfloat16(__m128i b) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(b), 16));
  }
  static SK_INLINE __m256i to_bfloat16(__m256 v) {
    const __m256i b = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
  }
  static SK_INLINE __m256i packed(Reg v) {
    const __m256i pairs = _mm256_packus_epi32(to_bfloat16(v.low), to_bfloat16(v.high));
    return _mm256_permute4x64_epi64(pairs, 0xd8);
  }
  // Small numbers become 0 first: the multiplication of a 0 is never slow, whatever the other lanes hold.
  static SK_INLINE __m256 mul_at_least(__m256 a, __m256 b, __m256 least) {
    return _mm256_mul_ps(_mm256_and_ps(_mm256_cmp_ps(a, least, _CMP_NLT_UQ), a), b);
  }
  // The low bits of t and s hold the integers.
  static SK_INLINE __m256 scale(__m256 v, __m256 t, __m256 s) {
    const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(s));
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(n, 23)));
  }
  static SK_INLINE __m256 split(__m256 u, __m256& k) {
    const __m256i half_root = _mm256_set1_epi32(LogConstants<float>::kHalfRoot);
    const __m256i above = _mm256_sub_epi32(_mm256_castps_si256(u), half_root);
    k = _mm256_cvtepi32_ps(_mm256_srai_epi32(above, 23));
    const __m256i mantissa = _mm256_and_si256(above, _mm256_set1_epi32(0x7fffff));
    return _mm256_castsi256_ps(_mm256_add_epi32(mantissa, half_root));
  }
  static SK_INLINE __m256 halves(const float* low, const float* high) {
    return _mm256_set_m128(_mm_loadu_ps(high), _mm_loadu_ps(low));
  }
  static SK_INLINE __m256 halves(const BFloat16* low, const BFloat16* high) {
    return from_bfloat16(load_words(low, high));
  }
  static SK_INLINE __m256 halves(const Half* low, const Half* high) {
    return _mm256_cvtph_ps(load_words(low, high));
  }
  // The words of `low` and `high`, in the order of store_words.
  static SK_INLINE void narrow(const BFloat16*, __m256 low, __m256 high, __m128i (&w)[2]) {
    const __m256i pairs = _mm256_packus_epi32(to_bfloat16(low), to_bfloat16(high));
    const __m128i a = _mm256_castsi256_si128(pairs), b = _mm256_extracti128_si256(pairs, 1);
    w[0] = _mm_unpacklo_epi64(a, b);
    w[1] = _mm_unpackhi_epi64(a, b);
  }
  static SK_INLINE void narrow(const Half*, __m256 low, __m256 high, __m128i (&w)[2]) {
    w[0] = _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT);
    w[1] = _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT);
  }
  // Transposes 4 x 4 numbers in each half.
  static SK_INLINE void transpose(__m256 (&r)[4]) {
    const __m256 a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
    r[0] = _mm256_shuffle_ps(a, c, 0x44);
    r[1] = _mm256_shuffle_ps(a, c, 0xee);
    r[2] = _mm256_shuffle_ps(b, d, 0x44);
    r[3] = _mm256_shuffle_ps(b, d, 0xee);
  }
};

template <>
struct Simd<double> {
  using Number = double;
  static constexpr int kLanes = 8, kPiece = 2, kWidePiece = 2, kBias = 1023, kInStep = 1;
  struct Half256 {
    using type = __m256d;
  };
  using Reg = Pair<Half256>;

  static SK_INLINE Reg broadcast(double a) { return {_mm256_set1_pd(a), _mm256_set1_pd(a)}; }
  static SK_INLINE Reg load(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
  static SK_INLINE Reg load(const double* p, int n, double fill) {
    const __m256i low = first(n), high = first(n - 4);
    const __m256d other = _mm256_set1_pd(fill);
    return {_mm256_blendv_pd(other, _mm256_maskload_pd(p, low), _mm256_castsi256_pd(low)),
            _mm256_blendv_pd(other, _mm256_maskload_pd(p + 4, high), _mm256_castsi256_pd(high))};
  }
  static SK_INLINE void store(double* p, Reg v) {
    _mm256_storeu_pd(p, v.low);
    _mm256_storeu_pd(p + 4, v.high);
  }
  static SK_INLINE void stream(double* p, Reg v) {
    _mm256_stream_pd(p, v.low);
    _mm256_stream_pd(p + 4, v.high);
  }
  static SK_INLINE void store(double* p, Reg v, int n) {
    _mm256_maskstore_pd(p, first(n), v.low);
    _mm256_maskstore_pd(p + 4, first(n - 4), v.high);
  }
  static SK_INLINE Reg add(Reg a, Reg b) {
    return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)};
  }
  static SK_INLINE Reg sub(Reg a, Reg b) {
    return {_mm256_sub_pd(a.low, b.low), _mm256_sub_pd(a.high, b.high)};
  }
  static SK_INLINE Reg mul(Reg a, Reg b) {
    return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)};
  }
  static SK_INLINE Reg div(Reg a, Reg b) {
    return {_mm256_div_pd(a.low, b.low), _mm256_div_pd(a.high, b.high)};
  }
  static SK_INLINE Reg fma(Reg a, Reg b, Reg c) {
    return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
  }
  static SK_INLINE Reg max(Reg a, Reg b) {
    return {_mm256_max_pd(a.low, b.low), _mm256_max_pd(a.high, b.high)};
  }
  static SK_INLINE Reg min(Reg a, Reg b) {
    return {_mm256_min_pd(a.low, b.low), _mm256_min_pd(a.high, b.high)};
  }
  // Masked lanes add +0, which changes nothing: sums start at +0 and are never -0.
  static SK_INLINE Reg add_if_equal(Reg s, Reg v, Reg a, Reg b) {
    return add(s, {_mm256_and_pd(_mm256_cmp_pd(a.low, b.low, _CMP_EQ_OQ), v.low),
                   _mm256_and_pd(_mm256_cmp_pd(a.high, b.high, _CMP_EQ_OQ), v.high)});
  }
  static SK_INLINE Reg add_unless_equal(Reg s, Reg v, Reg a, Reg b) {
    return add(s, {_mm256_andnot_pd(_mm256_cmp_pd(a.low, b.low, _CMP_EQ_OQ), v.low),
                   _mm256_andnot_pd(_mm256_cmp_pd(a.high, b.high, _CMP_EQ_OQ), v.high)});
  }
  static SK_INLINE Reg if_equal(Reg a, Reg b, Reg x, Reg y) {
    return {_mm256_blendv_pd(y.low, x.low, _mm256_cmp_pd(a.low, b.low, _CMP_EQ_OQ)),
            _mm256_blendv_pd(y.high, x.high, _mm256_cmp_pd(a.high, b.high, _CMP_EQ_OQ))};
  }
  static SK_INLINE Reg if_less(Reg a, Reg b, Reg x, Reg y) {
    return {_mm256_blendv_pd(y.low, x.low, _mm256_cmp_pd(a.low, b.low, _CMP_LT_OQ)),
            _mm256_blendv_pd(y.high, x.high, _mm256_cmp_pd(a.high, b.high, _CMP_LT_OQ))};
  }
  static SK_INLINE bool all_at_least(Reg a, Reg b) {
    const __m256d both =
        _mm256_and_pd(_mm256_cmp_pd(a.low, b.low, _CMP_GE_OQ), _mm256_cmp_pd(a.high, b.high, _CMP_GE_OQ));
    return _mm256_movemask_pd(both) == 0xf;
  }
  static SK_INLINE bool any_equal(Reg a, Reg b) {
    const __m256d either =
        _mm256_or_pd(_mm256_cmp_pd(a.low, b.low, _CMP_EQ_OQ), _mm256_cmp_pd(a.high, b.high, _CMP_EQ_OQ));
    return _mm256_movemask_pd(either) != 0;
  }
  static SK_INLINE Reg mul_at_least(Reg a, Reg b, Reg least) {
    return {mul_at_least(a.low, b.low, least.low), mul_at_least(a.high, b.high, least.high)};
  }
  static SK_INLINE Reg scale(Reg v, Reg t, Reg s) {
    return {scale(v.low, t.low, s.low), scale(v.high, t.high, s.high)};
  }
  static SK_INLINE Reg split(Reg u, Reg& k) { return {split(u.low, k.low), split(u.high, k.high)}; }
  template <class Row>
  static SK_INLINE void load_columns(Row row, Reg (&v)[kPiece]) {
    __m256d a[4];
    for (int i = 0; i < 4; ++i) {
      const int l = i % 2 + i / 2 * 4;
      a[i] = _mm256_set_m128d(_mm_loadu_pd(row(l + 2)), _mm_loadu_pd(row(l)));
    }
    v[0] = {_mm256_unpacklo_pd(a[0], a[1]), _mm256_unpacklo_pd(a[2], a[3])};
    v[1] = {_mm256_unpackhi_pd(a[0], a[1]), _mm256_unpackhi_pd(a[2], a[3])};
  }
  template <class Row>
  static SK_INLINE void store_columns(Row row, const Reg (&v)[kPiece]) {
    const __m256d a[4] = {_mm256_unpacklo_pd(v[0].low, v[1].low), _mm256_unpackhi_pd(v[0].low, v[1].low),
                          _mm256_unpacklo_pd(v[0].high, v[1].high), _mm256_unpackhi_pd(v[0].high, v[1].high)};
    for (int i = 0; i < 4; i += 2) {
      _mm_storeu_pd(row(2 * i), _mm256_castpd256_pd128(a[i]));
      _mm_storeu_pd(row(2 * i + 1), _mm256_castpd256_pd128(a[i + 1]));
      _mm_storeu_pd(row(2 * i + 2), _mm256_extractf128_pd(a[i], 1));
      _mm_storeu_pd(row(2 * i + 3), _mm256_extractf128_pd(a[i + 1], 1));
    }
  }
  static SK_INLINE double reduce_add(Reg v) {
    const __m256d w = _mm256_add_pd(v.low, v.high);
    const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(w), _mm256_extractf128_pd(w, 1));
    return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
  }
  static SK_INLINE double reduce_max(Reg v) {
    const __m256d w = _mm256_max_pd(v.low, v.high);
    const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(w), _mm256_extractf128_pd(w, 1));
    return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
  }

 private:
  static SK_INLINE __m256i first(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static SK_INLINE __m256d mul_at_least(__m256d a, __m256d b, __m256d least) {
    return _mm256_mul_pd(_mm256_and_pd(_mm256_cmp_pd(a, least, _CMP_NLT_UQ), a), b);
  }
  static SK_INLINE __m256d scale(__m256d v, __m256d t, __m256d s) {
    const __m256i n = _mm256_sub_epi64(_mm256_castpd_si256(t), _mm256_castpd_si256(s));
    return _mm256_mul_pd(v, _mm256_castsi256_pd(_mm256_slli_epi64(n, 52)));
  }
  static SK_INLINE __m256d split(__m256d u, __m256d& k) {
    const __m256i half_root = _mm256_set1_epi64x(LogConstants<double>::kHalfRoot);
    const __m256i above = _mm256_sub_epi64(_mm256_castpd_si256(u), half_root);
    // AVX2 has no arithmetic shift of 64-bit integers and does not convert them: k is computed from the upper
    // halves.
    const __m256i upper = _mm256_permutevar8x32_epi32(above, _mm256_setr_epi32(1, 3, 5, 7, 1, 3, 5, 7));
    k = _mm256_cvtepi32_pd(_mm_srai_epi32(_mm256_castsi256_si128(upper), 20));
    const __m256i mantissa = _mm256_and_si256(above, _mm256_set1_epi64x(0xfffffffffffff));
    return _mm256_castsi256_pd(_mm256_add_epi64(mantissa, half_root));
  }
};

static_assert(keeps_contract<Simd<float>, float>() && keeps_contract<Simd<double>, double>());

}  // namespace
}  // namespace softkern::cpu

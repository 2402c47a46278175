// SPDX-License-Identifier: Apache-2.0
// AVX-512 F, BW, DQ, VL: one zmm register holds the lanes; tails use masks.
#pragma once

#include "../../common/log_constants.h"
#include "words.h"

namespace softkern::cpu {
namespace {

/// Alternate quarters of a and b: first_quarters takes the first two of each, last_quarters the last two.
SK_INLINE __m512d first_quarters(__m512d a, __m512d b) {
  return _mm512_permutex2var_pd(a, _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), b);
}
SK_INLINE __m512d last_quarters(__m512d a, __m512d b) {
  return _mm512_permutex2var_pd(a, _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4), b);
}

template <>
struct Simd<float> {
  using Number = float;
  static constexpr int kLanes = 16, kPiece = 4, kWidePiece = 8, kBias = 127, kInStep = 4;
  using Reg = __m512;

  static SK_INLINE Reg broadcast(float a) { return _mm512_set1_ps(a); }
  static SK_INLINE Reg load(const float* p) { return _mm512_loadu_ps(p); }
  template <class T>
  static SK_INLINE Reg load(const T* p) {
    return widen(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static SK_INLINE Reg load(const float* p, int n, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), p);
  }
  template <class T>
  static SK_INLINE Reg load(const T* p, int n, float fill) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(fill), first(n),
                              widen(p, _mm256_maskz_loadu_epi16(first(n), p)));
  }
  static SK_INLINE void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  template <class T>
  static SK_INLINE void store(T* p, Reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(p, v));
  }
  static SK_INLINE void stream(float* p, Reg v) { _mm512_stream_ps(p, v); }
  template <class T>
  static SK_INLINE void stream(T* p, Reg v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(p, v));
  }
  static SK_INLINE void fence() { _mm_sfence(); }
  static SK_INLINE void store(float* p, Reg v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
  template <class T>
  static SK_INLINE void store(T* p, Reg v, int n) {
    _mm256_mask_storeu_epi16(p, first(n), narrow(p, v));
  }
  static SK_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static SK_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static SK_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static SK_INLINE Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static SK_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static SK_INLINE Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static SK_INLINE Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static SK_INLINE Reg add_if_equal(Reg s, Reg v, Reg a, Reg b) {
    return _mm512_mask_add_ps(s, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), s, v);
  }
  static SK_INLINE Reg add_unless_equal(Reg s, Reg v, Reg a, Reg b) {
    return _mm512_mask_add_ps(s, _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ), s, v);
  }
  static SK_INLINE Reg if_equal(Reg a, Reg b, Reg x, Reg y) {
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), x);
  }
  static SK_INLINE Reg if_less(Reg a, Reg b, Reg x, Reg y) {
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
  }
  static SK_INLINE bool all_at_least(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ) == 0xffff; }
  static SK_INLINE bool any_equal(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0; }
  static SK_INLINE Reg mul_at_least(Reg a, Reg b, Reg least) {
    return _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(a, least, _CMP_NLT_UQ), a, b);
  }
  // The low bits of t and s hold the integers.
  static SK_INLINE Reg scale(Reg v, Reg t, Reg s) {
    const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(s));
    return _mm512_mul_ps(v, _mm512_castsi512_ps(_mm512_slli_epi32(n, 23)));
  }
  static SK_INLINE Reg split(Reg u, Reg& k) {
    const __m512i half_root = _mm512_set1_epi32(LogConstants<float>::kHalfRoot);
    const __m512i above = _mm512_sub_epi32(_mm512_castps_si512(u), half_root);
    k = _mm512_cvtepi32_ps(_mm512_srai_epi32(above, 23));
    const __m512i mantissa = _mm512_and_si512(above, _mm512_set1_epi32(0x7fffff));
    return _mm512_castsi512_ps(_mm512_add_epi32(mantissa, half_root));
  }
  template <class Row>
  static SK_INLINE void load_columns(Row row, Reg (&v)[kPiece]) {
    for (int i = 0; i < 4; ++i) v[i] = quarters(row(i), row(i + 4), row(i + 8), row(i + 12));
    transpose(v);
  }
  template <class Row>
  static SK_INLINE void store_columns(Row row, const Reg (&v)[kPiece]) {
    Reg r[4] = {v[0], v[1], v[2], v[3]};
    transpose(r);
    if constexpr (sizeof(*row(0)) < sizeof(float)) {
      __m128i w[4][2];
      for (int i = 0; i < 4; ++i) {
        const __m256i words = narrow(row(0), r[i]);
        w[i][0] = _mm256_castsi256_si128(words);
        w[i][1] = _mm256_extracti128_si256(words, 1);
      }
      store_words(row, w);
    } else {
      for (int i = 0; i < 4; ++i) _mm_storeu_ps(row(i), _mm512_castps512_ps128(r[i]));
      for (int i = 0; i < 4; ++i) _mm_storeu_ps(row(i + 4), _mm512_extractf32x4_ps(r[i], 1));
      for (int i = 0; i < 4; ++i) _mm_storeu_ps(row(i + 8), _mm512_extractf32x4_ps(r[i], 2));
      for (int i = 0; i < 4; ++i) _mm_storeu_ps(row(i + 12), _mm512_extractf32x4_ps(r[i], 3));
    }
  }
  template <class Row>
  static SK_INLINE void load_columns(Row row, Reg (&v)[kWidePiece]) {
    Reg low[4], high[4];  // rows 0 to 7, 8 to 15
    for (int i = 0; i < 4; ++i) low[i] = halves(row(i), row(i + 4));
    for (int i = 0; i < 4; ++i) high[i] = halves(row(i + 8), row(i + 12));
    transpose(low);
    transpose(high);
    for (int c = 0; c < 4; ++c) {
      v[c] = _mm512_shuffle_f32x4(low[c], high[c], 0x88);
      v[c + 4] = _mm512_shuffle_f32x4(low[c], high[c], 0xdd);
    }
  }
  template <class Row>
  static SK_INLINE void store_columns(Row row, const Reg (&v)[kWidePiece]) {
    Reg low[4] = {v[0], v[1], v[2], v[3]}, high[4] = {v[4], v[5], v[6], v[7]};
    transpose(low);
    transpose(high);
    for (int i = 0; i < 4; ++i) {
      const __m512d a = _mm512_castps_pd(low[i]), b = _mm512_castps_pd(high[i]);
      low[i] = _mm512_castpd_ps(first_quarters(a, b));  // rows i and i + 4
      high[i] = _mm512_castpd_ps(last_quarters(a, b));  // rows i + 8 and i + 12
    }
    store_halves(row, 0, low);
    store_halves(row, 8, high);
  }
  static SK_INLINE float reduce_add(Reg v) {
    const __m256 w = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 x = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
    const __m128 y = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }
  static SK_INLINE float reduce_max(Reg v) {
    const __m256 w = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 x = _mm_max_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
    const __m128 y = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }

 private:
  static SK_INLINE Reg quarters(const float* a, const float* b, const float* c, const float* d) {
    Reg v = _mm512_castps128_ps512(_mm_loadu_ps(a));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(b), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(c), 2);
    return _mm512_insertf32x4(v, _mm_loadu_ps(d), 3);
  }
  static SK_INLINE Reg halves(const float* a, const float* b) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(a)), _mm256_loadu_ps(b), 1);
  }
  template <class T>
  static SK_INLINE Reg halves(const T* a, const T* b) {
    return widen(a, _mm256_set_m128i(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)),
                                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(a))));
  }
  // Stores eight rows from `first` on: the four lower halves, then the four upper halves.
  template <class Row>
  static SK_INLINE void store_halves(Row row, int first, const Reg (&r)[4]) {
    if constexpr (sizeof(*row(0)) < sizeof(float)) {
      __m256i w[4];
      for (int i = 0; i < 4; ++i) w[i] = narrow(row(0), r[i]);
      for (int i = 0; i < 4; ++i) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(row(first + i)), _mm256_castsi256_si128(w[i]));
      }
      for (int i = 0; i < 4; ++i) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(row(first + i + 4)), _mm256_extracti128_si256(w[i], 1));
      }
    } else {
      for (int i = 0; i < 4; ++i) _mm256_storeu_ps(row(first + i), _mm512_castps512_ps256(r[i]));
      for (int i = 0; i < 4; ++i) _mm256_storeu_ps(row(first + i + 4), _mm512_extractf32x8_ps(r[i], 1));
    }
  }
  template <class T>
  static SK_INLINE Reg quarters(const T* a, const T* b, const T* c, const T* d) {
    return widen(a, _mm256_set_m128i(load_words(c, d), load_words(a, b)));
  }
  // Transposes 4 x 4 numbers in each quarter.
  static SK_INLINE void transpose(Reg (&r)[4]) {
    const Reg a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
    const Reg c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
    r[0] = _mm512_shuffle_ps(a, c, 0x44);
    r[1] = _mm512_shuffle_ps(a, c, 0xee);
    r[2] = _mm512_shuffle_ps(b, d, 0x44);
    r[3] = _mm512_shuffle_ps(b, d, 0xee);
  }
  static SK_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  // Converts 16-bit elements; the pointer only selects their type.
  static SK_INLINE Reg widen(const Half*, __m256i bits) { return _mm512_cvtph_ps(bits); }
  static SK_INLINE Reg widen(const BFloat16*, __m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static SK_INLINE __m256i narrow(const Half*, Reg v) {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static SK_INLINE __m256i narrow(const BFloat16*, Reg v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i half = _mm512_mask_mov_epi32(_mm512_set1_epi32(0x7fff), odd, _mm512_set1_epi32(0x8000));
    const __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
    const __m512i rounded = _mm512_mask_add_epi32(_mm512_set1_epi32(0x7fc00000), number, bits, half);
    const __m512i high = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0x1f001d, 0x1b0019, 0x170015, 0x130011,
                                          0xf000d, 0xb0009, 0x70005, 0x30001);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(high, rounded));
  }
};

template <>
struct Simd<double> {
  using Number = double;
  static constexpr int kLanes = 8, kPiece = 2, kWidePiece = 4, kBias = 1023, kInStep = 4;
  using Reg = __m512d;

  static SK_INLINE Reg broadcast(double a) { return _mm512_set1_pd(a); }
  static SK_INLINE Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static SK_INLINE Reg load(const double* p, int n, double fill) {
    return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), first(n), p);
  }
  static SK_INLINE void store(double* p, Reg v) { _mm512_storeu_pd(p, v); }
  static SK_INLINE void stream(double* p, Reg v) { _mm512_stream_pd(p, v); }
  static SK_INLINE void store(double* p, Reg v, int n) { _mm512_mask_storeu_pd(p, first(n), v); }
  static SK_INLINE Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  static SK_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_pd(a, b); }
  static SK_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_pd(a, b); }
  static SK_INLINE Reg div(Reg a, Reg b) { return _mm512_div_pd(a, b); }
  static SK_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static SK_INLINE Reg max(Reg a, Reg b) { return _mm512_max_pd(a, b); }
  static SK_INLINE Reg min(Reg a, Reg b) { return _mm512_min_pd(a, b); }
  static SK_INLINE Reg add_if_equal(Reg s, Reg v, Reg a, Reg b) {
    return _mm512_mask_add_pd(s, _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), s, v);
  }
  static SK_INLINE Reg add_unless_equal(Reg s, Reg v, Reg a, Reg b) {
    return _mm512_mask_add_pd(s, _mm512_cmp_pd_mask(a, b, _CMP_NEQ_UQ), s, v);
  }
  static SK_INLINE Reg if_equal(Reg a, Reg b, Reg x, Reg y) {
    return _mm512_mask_mov_pd(y, _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ), x);
  }
  static SK_INLINE Reg if_less(Reg a, Reg b, Reg x, Reg y) {
    return _mm512_mask_mov_pd(y, _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), x);
  }
  static SK_INLINE bool all_at_least(Reg a, Reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ) == 0xff; }
  static SK_INLINE bool any_equal(Reg a, Reg b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ) != 0; }
  static SK_INLINE Reg mul_at_least(Reg a, Reg b, Reg least) {
    return _mm512_maskz_mul_pd(_mm512_cmp_pd_mask(a, least, _CMP_NLT_UQ), a, b);
  }
  static SK_INLINE Reg scale(Reg v, Reg t, Reg s) {
    const __m512i n = _mm512_sub_epi64(_mm512_castpd_si512(t), _mm512_castpd_si512(s));
    return _mm512_mul_pd(v, _mm512_castsi512_pd(_mm512_slli_epi64(n, 52)));
  }
  static SK_INLINE Reg split(Reg u, Reg& k) {
    const __m512i half_root = _mm512_set1_epi64(LogConstants<double>::kHalfRoot);
    const __m512i above = _mm512_sub_epi64(_mm512_castpd_si512(u), half_root);
    k = _mm512_cvtepi64_pd(_mm512_srai_epi64(above, 52));
    const __m512i mantissa = _mm512_and_si512(above, _mm512_set1_epi64(0xfffffffffffff));
    return _mm512_castsi512_pd(_mm512_add_epi64(mantissa, half_root));
  }
  template <class Row>
  static SK_INLINE void load_columns(Row row, Reg (&v)[kPiece]) {
    Reg r[2];
    for (int i = 0; i < 2; ++i) {
      r[i] = _mm512_castpd128_pd512(_mm_loadu_pd(row(i)));
      r[i] = _mm512_insertf64x2(r[i], _mm_loadu_pd(row(i + 2)), 1);
      r[i] = _mm512_insertf64x2(r[i], _mm_loadu_pd(row(i + 4)), 2);
      r[i] = _mm512_insertf64x2(r[i], _mm_loadu_pd(row(i + 6)), 3);
    }
    transpose(r);
    v[0] = r[0];
    v[1] = r[1];
  }
  template <class Row>
  static SK_INLINE void store_columns(Row row, const Reg (&v)[kPiece]) {
    Reg r[2] = {v[0], v[1]};
    transpose(r);
    for (int i = 0; i < 2; ++i) _mm_storeu_pd(row(i), _mm512_castpd512_pd128(r[i]));
    for (int i = 0; i < 2; ++i) _mm_storeu_pd(row(i + 2), _mm512_extractf64x2_pd(r[i], 1));
    for (int i = 0; i < 2; ++i) _mm_storeu_pd(row(i + 4), _mm512_extractf64x2_pd(r[i], 2));
    for (int i = 0; i < 2; ++i) _mm_storeu_pd(row(i + 6), _mm512_extractf64x2_pd(r[i], 3));
  }
  // As for float, with two numbers in a quarter.
  template <class Row>
  static SK_INLINE void load_columns(Row row, Reg (&v)[kWidePiece]) {
    Reg low[2], high[2];  // rows 0 to 3, 4 to 7
    for (int i = 0; i < 2; ++i) low[i] = halves(row(i), row(i + 2));
    for (int i = 0; i < 2; ++i) high[i] = halves(row(i + 4), row(i + 6));
    transpose(low);
    transpose(high);
    for (int c = 0; c < 2; ++c) {
      v[c] = _mm512_shuffle_f64x2(low[c], high[c], 0x88);
      v[c + 2] = _mm512_shuffle_f64x2(low[c], high[c], 0xdd);
    }
  }
  template <class Row>
  static SK_INLINE void store_columns(Row row, const Reg (&v)[kWidePiece]) {
    Reg low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
    transpose(low);
    transpose(high);
    for (int i = 0; i < 2; ++i) {
      const Reg r = low[i];
      low[i] = first_quarters(r, high[i]);  // rows i and i + 2
      high[i] = last_quarters(r, high[i]);  // rows i + 4 and i + 6
    }
    for (int i = 0; i < 2; ++i) _mm256_storeu_pd(row(i), _mm512_castpd512_pd256(low[i]));
    for (int i = 0; i < 2; ++i) _mm256_storeu_pd(row(i + 2), _mm512_extractf64x4_pd(low[i], 1));
    for (int i = 0; i < 2; ++i) _mm256_storeu_pd(row(i + 4), _mm512_castpd512_pd256(high[i]));
    for (int i = 0; i < 2; ++i) _mm256_storeu_pd(row(i + 6), _mm512_extractf64x4_pd(high[i], 1));
  }
  static SK_INLINE double reduce_add(Reg v) {
    const __m256d w = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(w), _mm256_extractf128_pd(w, 1));
    return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
  }
  static SK_INLINE double reduce_max(Reg v) {
    const __m256d w = _mm256_max_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(w), _mm256_extractf128_pd(w, 1));
    return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
  }

 private:
  static SK_INLINE Reg halves(const double* a, const double* b) {
    return _mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(a)), _mm256_loadu_pd(b), 1);
  }
  // Transposes 2 x 2 numbers in each quarter.
  static SK_INLINE void transpose(Reg (&r)[2]) {
    const Reg low = _mm512_unpacklo_pd(r[0], r[1]);
    r[1] = _mm512_unpackhi_pd(r[0], r[1]);
    r[0] = low;
  }
  static SK_INLINE __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1); }
};

static_assert(keeps_contract<Simd<float>, float>() && keeps_contract<Simd<double>, double>());

}  // namespace
}  // namespace softkern::cpu

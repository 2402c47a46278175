// SPDX-License-Identifier: Apache-2.0
// AVX-512 F, BW, DQ, VL: one zmm register; masks for tails; vscalefps for ldexp.
#pragma once

#include "contract.h"

namespace softkern::cpu {
namespace {

template <>
struct Simd<float> {
  using Number = float;
  static constexpr int kLanes = 16, kPiece = 4, kBias = 127, kInStep = 4;
  using Reg = __m512;

  static SK_INLINE Reg broadcast(float a) { return _mm512_set1_ps(a); }
  static SK_INLINE Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static SK_INLINE Reg load(const BFloat16* p) {
    return from_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static SK_INLINE Reg load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static SK_INLINE Reg load(const float* p, int n, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), p);
  }
  static SK_INLINE Reg load(const BFloat16* p, int n, float fill) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(fill), first(n),
                              from_bfloat16(_mm256_maskz_loadu_epi16(first(n), p)));
  }
  static SK_INLINE Reg load(const Half* p, int n, float fill) {
    return _mm512_mask_cvtph_ps(_mm512_set1_ps(fill), first(n), _mm256_maskz_loadu_epi16(first(n), p));
  }
  static SK_INLINE void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static SK_INLINE void store(BFloat16* p, Reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(v));
  }
  static SK_INLINE void store(Half* p, Reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, kRound));
  }
  static SK_INLINE void stream(float* p, Reg v) { _mm512_stream_ps(p, v); }
  static SK_INLINE void stream(BFloat16* p, Reg v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(v));
  }
  static SK_INLINE void stream(Half* p, Reg v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, kRound));
  }
  static SK_INLINE void fence() { _mm_sfence(); }
  static SK_INLINE void store(float* p, Reg v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
  static SK_INLINE void store(BFloat16* p, Reg v, int n) {
    _mm256_mask_storeu_epi16(p, first(n), to_bfloat16(v));
  }
  static SK_INLINE void store(Half* p, Reg v, int n) {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(v, kRound));
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
  static SK_INLINE Reg ldexp(Reg v, Reg n) { return _mm512_scalef_ps(v, n); }
  // The integers stand in the low bits of t and s.
  static SK_INLINE Reg scale(Reg v, Reg t, Reg s) {
    const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_castps_si512(s));
    return _mm512_mul_ps(v, _mm512_castsi512_ps(_mm512_slli_epi32(n, 23)));
  }
  static SK_INLINE Reg split(Reg u, Reg& k) {
    const __m512i half_root = _mm512_set1_epi32(0x3f3504f3);  // sqrt(1/2)
    const __m512i above = _mm512_sub_epi32(_mm512_castps_si512(u), half_root);
    k = _mm512_cvtepi32_ps(_mm512_srai_epi32(above, 23));
    const __m512i mantissa = _mm512_and_si512(above, _mm512_set1_epi32(0x7fffff));
    return _mm512_castsi512_ps(_mm512_add_epi32(mantissa, half_root));
  }
  template <class Row>
  static SK_INLINE void load_columns(Row row, Reg (&v)[kPiece]) {
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm512_castps128_ps512(piece(row(i)));
      v[i] = _mm512_insertf32x4(v[i], piece(row(i + 4)), 1);
      v[i] = _mm512_insertf32x4(v[i], piece(row(i + 8)), 2);
      v[i] = _mm512_insertf32x4(v[i], piece(row(i + 12)), 3);
    }
    transpose(v);
  }
  template <class Row>
  static SK_INLINE void store_columns(Row row, const Reg (&v)[kPiece]) {
    Reg r[4] = {v[0], v[1], v[2], v[3]};
    transpose(r);
    for (int i = 0; i < 4; ++i) store_piece(row(i), _mm512_castps512_ps128(r[i]));
    for (int i = 0; i < 4; ++i) store_piece(row(i + 4), _mm512_extractf32x4_ps(r[i], 1));
    for (int i = 0; i < 4; ++i) store_piece(row(i + 8), _mm512_extractf32x4_ps(r[i], 2));
    for (int i = 0; i < 4; ++i) store_piece(row(i + 12), _mm512_extractf32x4_ps(r[i], 3));
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
  static SK_INLINE __m128 piece(const float* p) { return _mm_loadu_ps(p); }
  static SK_INLINE __m128 piece(const BFloat16* p) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(four(p)), 16));
  }
  static SK_INLINE __m128 piece(const Half* p) { return _mm_cvtph_ps(four(p)); }
  static SK_INLINE __m128i four(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
  static SK_INLINE void store_piece(float* p, __m128 v) { _mm_storeu_ps(p, v); }
  static SK_INLINE void store_piece(BFloat16* p, __m128 v) {
    const __m256i b = to_bfloat16(_mm512_castps128_ps512(v));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(b));
  }
  static SK_INLINE void store_piece(Half* p, __m128 v) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  // 4 x 4 in all quarters.
  static SK_INLINE void transpose(Reg (&r)[4]) {
    const Reg a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
    const Reg c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
    r[0] = _mm512_shuffle_ps(a, c, 0x44);
    r[1] = _mm512_shuffle_ps(a, c, 0xee);
    r[2] = _mm512_shuffle_ps(b, d, 0x44);
    r[3] = _mm512_shuffle_ps(b, d, 0xee);
  }
  static constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  static SK_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static SK_INLINE Reg from_bfloat16(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static SK_INLINE __m256i to_bfloat16(Reg v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
  }
};

template <>
struct Simd<double> {
  using Number = double;
  static constexpr int kLanes = 8, kPiece = 2, kBias = 1023, kInStep = 4;
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
  static SK_INLINE Reg ldexp(Reg v, Reg n) { return _mm512_scalef_pd(v, n); }
  static SK_INLINE Reg scale(Reg v, Reg t, Reg s) {
    const __m512i n = _mm512_sub_epi64(_mm512_castpd_si512(t), _mm512_castpd_si512(s));
    return _mm512_mul_pd(v, _mm512_castsi512_pd(_mm512_slli_epi64(n, 52)));
  }
  static SK_INLINE Reg split(Reg u, Reg& k) {
    const __m512i half_root = _mm512_set1_epi64(0x3fe6a09e667f3bcd);  // sqrt(1/2)
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
    v[0] = _mm512_unpacklo_pd(r[0], r[1]);
    v[1] = _mm512_unpackhi_pd(r[0], r[1]);
  }
  template <class Row>
  static SK_INLINE void store_columns(Row row, const Reg (&v)[kPiece]) {
    const Reg r[2] = {_mm512_unpacklo_pd(v[0], v[1]), _mm512_unpackhi_pd(v[0], v[1])};
    for (int i = 0; i < 2; ++i) _mm_storeu_pd(row(i), _mm512_castpd512_pd128(r[i]));
    for (int i = 0; i < 2; ++i) _mm_storeu_pd(row(i + 2), _mm512_extractf64x2_pd(r[i], 1));
    for (int i = 0; i < 2; ++i) _mm_storeu_pd(row(i + 4), _mm512_extractf64x2_pd(r[i], 2));
    for (int i = 0; i < 2; ++i) _mm_storeu_pd(row(i + 6), _mm512_extractf64x2_pd(r[i], 3));
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
  static SK_INLINE __mmask8 first(int n) { return static_cast<__mmask8>((1u << n) - 1); }
};

static_assert(keeps_contract<Simd<float>, float>() && keeps_contract<Simd<double>, double>());

}  // namespace
}  // namespace softkern::cpu

// SPDX-License-Identifier: Apache-2.0
// y_c = exp(x_c - m) / d,   m = max_c x_c,   d = sum_c exp(x_c - m);     dx_c = y_c (g_c - sum_k g_k y_k)
#include "softmax.cuh"

namespace softkern::cuda {
namespace {

struct SoftmaxOp {
  static constexpr bool kOfTerms = true;
  template <class A>
  static SK_INLINE A row_number(const Stats<A>& s) {
    return inverse_of(s.total());
  }
  template <class A>
  static SK_INLINE A value(A e, A inverse) {
    return e * inverse;
  }
  template <class A>
  static SK_INLINE A summand(A g, A y) {
    return g * y;
  }
  template <class T, class A>
  static SK_INLINE A gradient(A g, A y, A dot) {
    return y * (g - dot);
  }
};

}  // namespace

struct Softmax;

template <>
Outcome compute<Softmax, SOFTKERN_ELEMENT>(const ForwardArgs& args, const DeviceStream& stream) {
  return forward_on<SoftmaxOp, SOFTKERN_ELEMENT>(args, stream);
}
template <>
Outcome compute<Softmax, SOFTKERN_ELEMENT>(const BackwardArgs& args, const DeviceStream& stream) {
  return backward_on<SoftmaxOp, SOFTKERN_ELEMENT>(args, stream);
}

}  // namespace softkern::cuda

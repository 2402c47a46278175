// SPDX-License-Identifier: Apache-2.0
// y_c = (x_c - m) - log d,   m = max_c x_c,   d = sum_c exp(x_c - m);    dx_c = g_c - exp(y_c) sum_k g_k
#include "softmax.cuh"

namespace softkern::cuda {
namespace {

struct LogSoftmaxOp {
  static constexpr bool kOfTerms = false;
  template <class A>
  static SK_INLINE A row_number(const Stats<A>& s) {
    return s.log_d();
  }
  // Not x - (m + log d): with logits around 1e6 that sum would lose log d.
  template <class A>
  static SK_INLINE A value(A x, A m, A log_d) {
    return (x - m) - log_d;
  }
  template <class A>
  static SK_INLINE A summand(A g, A) {
    return g;
  }
  template <class T, class A>
  static SK_INLINE A gradient(A g, A y, A total) {
    return g - exp_of<T>(y) * total;
  }
};

}  // namespace

struct LogSoftmax;

template <>
Outcome compute<LogSoftmax, SOFTKERN_ELEMENT>(const ForwardArgs& args, const DeviceStream& stream) {
  return forward_on<LogSoftmaxOp, SOFTKERN_ELEMENT>(args, stream);
}
template <>
Outcome compute<LogSoftmax, SOFTKERN_ELEMENT>(const BackwardArgs& args, const DeviceStream& stream) {
  return backward_on<LogSoftmaxOp, SOFTKERN_ELEMENT>(args, stream);
}

}  // namespace softkern::cuda

// SPDX-License-Identifier: Apache-2.0
// softmax and log_softmax of CPU tensors.
#include <c10/core/WrapDimMinimal.h>

#include "../ops.h"
#include "launch.h"

namespace softkern::cpu {
namespace {

Tensor forward(const Tensor& self, int64_t dim, Kernel<ForwardArgs> Kernels::* kernel) {
  const ElementType type = element_type(self);
  Tensor output = new_output(self);
  dim = c10::maybe_wrap_dim(dim, self.dim());
  if (self.numel() == 0) return output;
  Tensor keep;
  const Tensor x = self.dim() == 0 ? self.view(1) : self;
  const Tensor y = self.dim() == 0 ? output.view(1) : output;
  const Layout layout = layout_of(x, dim);
  const ForwardArgs args{layout.shape, readable_rows(x, dim, keep), *as_rows(y, dim, y.data_ptr()),
                         streams(y.nbytes())};
  run(active().by_type[type]->*kernel, args, layout);
  return output;
}

Tensor backward(const Tensor& grad_output, const Tensor& output, int64_t dim,
                Kernel<BackwardArgs> Kernels::* kernel) {
  const ElementType type = element_type(output);
  TORCH_CHECK(grad_output.sizes() == output.sizes() && grad_output.scalar_type() == output.scalar_type(),
              "softkern: expected grad_output of shape ", output.sizes(), " and dtype ", output.scalar_type(),
              " as the output has, got ", grad_output.sizes(), " and ", grad_output.scalar_type());
  Tensor grad_input = new_output(output);
  dim = c10::maybe_wrap_dim(dim, output.dim());
  if (output.numel() == 0) return grad_input;
  Tensor keep_g, keep_y;
  const bool scalar = output.dim() == 0;
  const Tensor g = scalar ? grad_output.view(1) : grad_output;
  const Tensor y = scalar ? output.view(1) : output;
  const Tensor dx = scalar ? grad_input.view(1) : grad_input;
  const Layout layout = layout_of(y, dim);
  const BackwardArgs args{layout.shape, readable_rows(g, dim, keep_g), readable_rows(y, dim, keep_y),
                          *as_rows(dx, dim, dx.data_ptr()), streams(dx.nbytes())};
  run(active().by_type[type]->*kernel, args, layout);
  return grad_input;
}

using Forward = Kernel<ForwardArgs> Kernels::*;
using Backward = Kernel<BackwardArgs> Kernels::*;

template <Forward kKernel>
Tensor forward_by(const Tensor& self, int64_t dim) {
  return forward(self, dim, kKernel);
}
template <Backward kKernel>
Tensor backward_by(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  return backward(grad_output, output, dim, kKernel);
}

[[maybe_unused]] const bool kSoftmaxesNamed[] = {
    softkern::softmax.computed_by(Backend::kCpu, &forward_by<&Kernels::softmax>),
    softkern::log_softmax.computed_by(Backend::kCpu, &forward_by<&Kernels::log_softmax>),
    softkern::softmax_backward.computed_by(Backend::kCpu, &backward_by<&Kernels::softmax_backward>),
    softkern::log_softmax_backward.computed_by(Backend::kCpu, &backward_by<&Kernels::log_softmax_backward>),
};

}  // namespace
}  // namespace softkern::cpu

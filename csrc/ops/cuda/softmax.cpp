// SPDX-License-Identifier: Apache-2.0
// softmax and log_softmax of CUDA tensors.
#include <c10/core/WrapDimMinimal.h>

#include "../ops.h"
#include "launch.h"

namespace softkern::cuda {

struct Softmax;
struct LogSoftmax;

namespace {

template <class Op>
Tensor forward(const Tensor& self, int64_t dim) {
  const ElementType type = element_type(self);
  Tensor output = new_output(self);
  dim = c10::maybe_wrap_dim(dim, self.dim());
  if (self.numel() == 0) return output;
  const OnDevice device(self);
  Tensor keep;
  const Tensor x = self.dim() == 0 ? self.view(1) : self;
  const Tensor y = self.dim() == 0 ? output.view(1) : output;
  const Layout layout = layout_of(x, dim);
  const ForwardArgs args{layout.shape, layout.rows, readable_rows(x, dim, keep),
                         *as_rows(y, dim, y.data_ptr())};
  check_launch(with_element(
      type, [&](auto element) { return compute<Op, decltype(element)>(args, device.target()); }));
  return output;
}

template <class Op>
Tensor backward(const Tensor& grad_output, const Tensor& output, int64_t dim) {
  const ElementType type = element_type(output);
  TORCH_CHECK(grad_output.sizes() == output.sizes() && grad_output.scalar_type() == output.scalar_type() &&
                  grad_output.device() == output.device(),
              "softkern: expected grad_output of shape ", output.sizes(), " and dtype ", output.scalar_type(),
              " on ", output.device(), " as the output has, got ", grad_output.sizes(), " and ",
              grad_output.scalar_type(), " on ", grad_output.device());
  Tensor grad_input = new_output(output);
  dim = c10::maybe_wrap_dim(dim, output.dim());
  if (output.numel() == 0) return grad_input;
  const OnDevice device(output);
  Tensor keep_g, keep_y;
  const bool scalar = output.dim() == 0;
  const Tensor g = scalar ? grad_output.view(1) : grad_output;
  const Tensor y = scalar ? output.view(1) : output;
  const Tensor dx = scalar ? grad_input.view(1) : grad_input;
  const Layout layout = layout_of(y, dim);
  const BackwardArgs args{layout.shape, layout.rows, readable_rows(g, dim, keep_g),
                          readable_rows(y, dim, keep_y), *as_rows(dx, dim, dx.data_ptr())};
  check_launch(with_element(
      type, [&](auto element) { return compute<Op, decltype(element)>(args, device.target()); }));
  return grad_input;
}

[[maybe_unused]] const bool kSoftmaxesNamed[] = {
    softkern::softmax.computed_by(Backend::kCuda, &forward<Softmax>),
    softkern::log_softmax.computed_by(Backend::kCuda, &forward<LogSoftmax>),
    softkern::softmax_backward.computed_by(Backend::kCuda, &backward<Softmax>),
    softkern::log_softmax_backward.computed_by(Backend::kCuda, &backward<LogSoftmax>),
};

}  // namespace
}  // namespace softkern::cuda

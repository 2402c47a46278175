// SPDX-License-Identifier: Apache-2.0
// Launches the CUDA kernels for tensors. Nothing here waits for the device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include "../../cuda/api.h"
#include "../../cuda/device.h"
#include "../ran.h"
#include "../rows.h"

namespace softkern::cuda {

using at::Tensor;

/// Calls f(T()) with the kernels' C++ type of the elements.
template <class F>
auto with_element(ElementType type, F f) {
  switch (type) {
    case kDouble:
      return f(double());
    case kBFloat16:
      return f(BFloat16());
    case kHalf:
      return f(Half());
    default:
      return f(float());
  }
}

inline IndexType index_type_of(const Tensor& target) {
  switch (target.scalar_type()) {
    case at::kInt:
      return kInt32;
    case at::kByte:
      return kUInt8;
    default:
      return kInt64;
  }
}

#if defined(SOFTKERN_EMULATED)
constexpr bool kStopsDevice = false;  // emulated kernels have no device to stop
#else
constexpr bool kStopsDevice = true;
#endif

/// Makes a tensor's device the current one for the lifetime of this object.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x) : guard_(x.device()) {
    void* stream = nullptr;
#if !defined(SOFTKERN_EMULATED)
    const c10::impl::VirtualGuardImpl impl(x.device().type());
    stream = impl.getStream(x.device()).native_handle();
#endif
    target_ = on_device(x.device().index(), stream);
  }
  const DeviceStream& target() const { return target_; }

 private:
  c10::DeviceGuard guard_;
  DeviceStream target_;
};

inline void check_launch(const char* error) {
  TORCH_CHECK(error == nullptr, "softkern: a CUDA kernel was not launched: ", error);
}

inline void check_launch(const Outcome& outcome) {
  check_launch(outcome.error);
  set_last_ran({"cuda", outcome.path});
}

}  // namespace softkern::cuda

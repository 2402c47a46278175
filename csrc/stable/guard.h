// SPDX-License-Identifier: Apache-2.0
// The current device, and its stream.
#pragma once

#include "types.h"
#include "tensor.h"

// Where torch has no CUDA there is no such function, and no tensor that would need it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace c10 {
inline namespace softkern_stable {

class DeviceGuard {
 public:
  explicit DeviceGuard(Device device) {
    if (device.is_cpu()) return;
    DeviceGuardHandle guard = nullptr;
    SOFTKERN_STABLE(aoti_torch_create_device_guard, device.index(), &guard);
    guard_ = {guard, [](DeviceGuardHandle owned) { aoti_torch_delete_device_guard(owned); }};
  }

 private:
  std::shared_ptr<DeviceGuardOpaque> guard_;
};

struct Stream {
  void* handle;
  void* native_handle() const { return handle; }
};

}  // namespace softkern_stable
}  // namespace c10

namespace c10::impl {
inline namespace softkern_stable {

struct VirtualGuardImpl {
  explicit VirtualGuardImpl(DeviceType) {}
  Stream getStream(Device device) const {
    TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "softkern: this torch has no CUDA streams");
    void* stream = nullptr;
    SOFTKERN_STABLE(aoti_torch_get_current_cuda_stream, device.index(), &stream);
    return {stream};
  }
};

}  // namespace softkern_stable
}  // namespace c10::impl

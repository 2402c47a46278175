// SPDX-License-Identifier: Apache-2.0
// Which backend computes: an ISA of the CPU, the CUDA kernels or Triton, by softkern's choice or by name.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <string>

namespace softkern {

enum class Backend { kNone, kCpu, kCuda, kTriton };
constexpr size_t kBackends = 4;

/// Choice of the process / of the calling thread; an empty name takes it back. A thread's choice wins.
/// Names, exceptions: as in cpu/dispatch.h, and "cuda" and "triton", which leave the choice of the ISA as it
/// is. `required`: nothing else may compute instead; always so for these two.
void choose_for_process(const std::string& name, bool required);
void choose_for_thread(const std::string& name);
std::string thread_choice();

/// The name that nothing may replace: the thread's choice, or the process's if it is required; else empty.
std::string required();

/// Who computes the calling thread's tensors on a device: the backend that was named, or none if it can't;
/// softkern's choice where none was.
Backend backend_for(c10::Device device);

/// Says why there is none: nothing computes tensors on that device, or not the backend that was named.
[[noreturn]] void raise_no_backend(c10::Device device);

/// Why the CUDA kernels can't compute tensors on a device of CUDA; empty if they can.
std::string why_no_cuda(int device);

/// Says whether Triton computes tensors on a device, by the name of its type, and makes the kernels of
/// `softkern_triton` ready if so. It is asked by the first tensor of a type and its answers are kept; what it
/// throws is a no, or passed on where Triton was named. To be set before there are threads; forgets the
/// answers of the one before.
void set_triton_probe(std::function<bool(const std::string& device_type)> probe);

}  // namespace softkern

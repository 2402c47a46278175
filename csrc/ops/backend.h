// SPDX-License-Identifier: Apache-2.0
// Which backend computes: an instruction set (ISA) of the CPU, the CUDA kernels or Triton. softkern chooses
// it, or the user by name.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <string>

namespace softkern {

enum class Backend { kNone, kCpu, kCuda, kTriton };
constexpr size_t kBackends = 4;

/// Sets the choice of the process, or of the calling thread. An empty name removes the choice. A thread's
/// choice takes precedence. Names and exceptions are those of cpu/dispatch.h, and also "cuda" and "triton",
/// which don't change the process's choice of the ISA. With `required`, no other backend may compute instead;
/// this always holds for "cuda" and "triton".
void choose_for_process(const std::string& name, bool required);
void choose_for_thread(const std::string& name);
std::string thread_choice();

/// The name of the backend that nothing may replace: the thread's choice, or the process's choice if it is
/// required. Empty if there is none.
std::string required();

/// The backend that computes the calling thread's tensors on a device. If a backend was chosen by name: that
/// one, or kNone if it can't compute there. Otherwise softkern chooses.
Backend backend_for(c10::Device device);

/// Raises an exception that says why no backend computes tensors on the device: there is none, or the one
/// chosen by name can't.
[[noreturn]] void raise_no_backend(c10::Device device);

/// Why the CUDA kernels can't compute tensors on a CUDA device. Empty if they can.
std::string why_no_cuda(int device);

/// Sets the probe, which says whether Triton computes tensors on a type of device, given by its name. If so,
/// the probe also registers the kernels of `softkern_triton`. The first tensor of each type calls it, and its
/// answers are kept. An exception means no; if Triton was chosen by name, the exception is passed on. Set the
/// probe before threads start. A new probe discards the answers of the old one.
void set_triton_probe(std::function<bool(const std::string& device_type)> probe);

}  // namespace softkern

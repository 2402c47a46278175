// SPDX-License-Identifier: Apache-2.0
// Which backend computes: an ISA of the CPU or Triton, by softkern's choice or by name.
#pragma once

#include <c10/core/DeviceType.h>

#include <functional>
#include <string>

namespace softkern {

constexpr const char* kTriton = "triton";

/// Choice of the process / of the calling thread; an empty name takes it back. A thread's choice wins.
/// Names, exceptions: as in cpu/dispatch.h, and "triton", which leaves the choice of the ISA as it is.
/// `required`: nothing else may compute instead; always so for Triton.
void choose_for_process(const std::string& name, bool required);
void choose_for_thread(const std::string& name);
std::string thread_choice();

/// The name that nothing may replace: the thread's choice, or the process's if it is required; else empty.
std::string required();

/// Whether CPU tensors of the calling thread are Triton's.
bool triton_named();

/// Whether the calling thread's choice, or softkern's where there is none, computes tensors on such a device.
bool computes_on(c10::DeviceType type);

/// Says whether Triton computes tensors on a device, by the name of its type, and makes the kernels of
/// `softkern_triton` ready if so. It is asked by the first tensor of a type and its answers are kept; what it
/// throws is a no, or passed on where Triton was named. To be set before there are threads; forgets the
/// answers of the one before.
void set_triton_probe(std::function<bool(const std::string& device_type)> probe);

}  // namespace softkern

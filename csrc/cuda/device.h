// SPDX-License-Identifier: Apache-2.0
// Properties of this process's devices, and whether the kernels of this build run on them.
#pragma once

#include <string>

#include "api.h"

namespace softkern::cuda {

/// Why kernels of this build don't run on the device; empty if they do.
std::string why_not(int device);

/// A stream of the device, with the device's properties.
DeviceStream on_device(int device, void* stream);

/// Whether code that was compiled for a list of architectures ("8.0;9.0;12.0+PTX") runs on a device of this
/// compute capability.
bool runs_on(const char* architectures, int major, int minor);

}  // namespace softkern::cuda

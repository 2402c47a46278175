// SPDX-License-Identifier: Apache-2.0
// Properties of this process's devices, and whether the kernels of this build run on them.
#pragma once

#include <string>

namespace softkern::cuda {

/// Why kernels of this build don't run on the device; empty if they do.
std::string why_not(int device);

/// Whether the device supports clusters of blocks.
bool has_clusters(int device);

/// Whether code that was compiled for a list of architectures ("8.0;9.0;12.0+PTX") runs on a device of this
/// compute capability.
bool runs_on(const char* architectures, int major, int minor);

}  // namespace softkern::cuda

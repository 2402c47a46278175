// SPDX-License-Identifier: Apache-2.0
// Which kernel ran last in the calling thread, on any backend.
#pragma once

#include <string>

#include "../common/ran.h"

namespace softkern {

/// Empty names before the first call.
const Ran& last_ran();
void set_last_ran(const Ran& ran);
/// For names from Python, which are kept as long as the string literals of C++.
void set_last_ran_by_name(const std::string& isa, const std::string& path);

}  // namespace softkern

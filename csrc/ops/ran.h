// SPDX-License-Identifier: Apache-2.0
// Which kernel ran last in the calling thread, on any backend.
#pragma once

#include "../common/ran.h"

namespace softkern {

/// Empty names before the first call.
const Ran& last_ran();
void set_last_ran(const Ran& ran);

}  // namespace softkern

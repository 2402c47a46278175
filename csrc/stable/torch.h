// SPDX-License-Identifier: Apache-2.0
// What csrc/ops needs of torch, made of torch's stable ABI alone. In this build, each header of torch that
// csrc/ops includes is this file (tools/stable_build.py).
#pragma once

#include "dispatcher.h"
#include "functions.h"
#include "guard.h"
#include "tensor.h"
#include "types.h"

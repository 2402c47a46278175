// SPDX-License-Identifier: Apache-2.0
// Prefetches while blocks of lanes are computed.
#pragma once

#include "../../common/inline.h"
#include "../api.h"

namespace softkern::cpu {
namespace {

/// Memory to prefetch while blocks are computed, one cache line for each of their vectors. A run has `run`
/// lines that are `line` bytes apart, and the next run begins `step` bytes after the beginning of this one. A
/// run whose lines are 0 bytes apart has no end.
class Ahead {
 public:
  explicit SK_INLINE Ahead(const void* from, int64_t line = 0, int64_t run = 1, int64_t step = 0)
      : at_(static_cast<const char*>(from)),
        end_(line == 0 ? nullptr : at_ + run * line),
        line_(line),
        back_(step - run * line),
        step_(step) {}
  SK_INLINE void fetch_line() {
    __builtin_prefetch(at_, 0, 2);
    at_ += line_;
    if (__builtin_expect(at_ == end_, 0)) {
      at_ += back_;
      end_ += step_;
    }
  }

 private:
  const char *at_, *end_;
  int64_t line_, back_, step_;
};

}  // namespace
}  // namespace softkern::cpu

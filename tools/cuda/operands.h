// SPDX-License-Identifier: Apache-2.0
// What the cells of tools/time_cuda.cpp compute on.
#pragma once

#include <algorithm>
#include <vector>

#include "tensor.h"

namespace softkern::tools {

/// Memory with numbers between -6 and 6. It is filled with copies of a block that is made once: making
/// gigabytes of numbers on the host would take longer than all cells.
class Filled {
 public:
  Filled(int64_t count, uint64_t sequence) : memory_(static_cast<size_t>(count) * sizeof(T)) {
    const auto block = static_cast<size_t>(std::min<int64_t>(count, 1 << 20));
    std::vector<T> numbers(block);
    for (size_t i = 0; i < block; ++i) numbers[i] = element(6 * chance(i, sequence));
    copy_to_device(memory_.at(), numbers.data(), block * sizeof(T));
    // What is there already is copied behind itself.
    for (size_t there = block; there < static_cast<size_t>(count);) {
      const size_t more = std::min(there, static_cast<size_t>(count) - there);
      copy_on_device(static_cast<T*>(memory_.at()) + there, memory_.at(), more * sizeof(T));
      there += more;
    }
    synchronize();
  }
  void* at() const { return memory_.at(); }

 private:
  Memory memory_;
};

/// Class indices of which every `of`-th is ignored; 0: none is.
inline std::vector<int64_t> indices(const Layout& at, int64_t of) {
  std::vector<int64_t> result;
  for (int64_t r = 0; r < at.rows; ++r) {
    result.push_back(of > 0 && r % of == 1 ? kIgnored : r * 7919 % at.classes);
  }
  return result;
}

struct Operands {
  explicit Operands(const Layout& layout)
      : at(layout),
        logits(at.count(), 1),
        second(at.count(), 2),
        out(static_cast<size_t>(at.count()) * sizeof(T)),
        weights(at.classes, 3),
        of_rows(at.rows, 4),
        target(indices(at, 0)),
        half_ignored(indices(at, 2)),
        loss(at.rows),
        factor(std::vector<A>{A(0.5)}),
        number(std::vector<A>{A(0)}),
        mass(1),
        scratch(cuda::sum_scratch(at.rows)) {}

  /// Bytes of the device that they take.
  static size_t bytes(const Layout& at) {
    return 3 * static_cast<size_t>(at.count()) * sizeof(T) + 64 * static_cast<size_t>(at.rows);
  }

  Layout at;
  Filled logits, second;
  Memory out;
  Filled weights, of_rows;
  Numbers<int64_t> target, half_ignored;
  Numbers<A> loss, factor, number;
  Numbers<double> mass, scratch;
};

}  // namespace softkern::tools

// SPDX-License-Identifier: Apache-2.0
// Tensors of rows, on the host and on the device.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "device.h"
#include "elements.h"

namespace softkern::tools {

/// Rows of classes. The classes of a row are next to each other if inner is 1; otherwise the neighbouring
/// rows are, `inner` of them. The first row begins `offset` elements after the beginning of the memory.
struct Layout {
  int64_t rows, classes, inner = 1;
  int64_t offset = 0;

  int64_t count() const { return rows * classes; }
  int64_t index(int64_t row, int64_t c) const {
    return offset + (row / inner * classes + c) * inner + row % inner;
  }
  Shape shape() const { return {classes, inner}; }
  Rows at(void* memory) const { return {static_cast<T*>(memory) + offset, classes * inner, 1, inner}; }
  /// As in torch: rows that are neighbours are the last dimensions.
  std::string sizes(const char* between) const {
    const std::string text = std::to_string(rows / inner) + between + std::to_string(classes);
    return inner > 1 ? text + between + std::to_string(inner) : text;
  }
  std::string name() const { return offset > 0 ? sizes("x") + "+" + std::to_string(offset) : sizes("x"); }
};

/// Numbers of the host's, sent to the device. Numbers are the element type's or others.
template <class N>
class Numbers {
 public:
  explicit Numbers(std::vector<N> numbers) : host(std::move(numbers)), memory_(host.size() * sizeof(N)) {
    if (!host.empty()) memory_.send(host.data());
  }
  /// As many numbers, all of whose bits are set: NaNs until something is stored.
  explicit Numbers(int64_t count) : host(static_cast<size_t>(count)), memory_(host.size() * sizeof(N)) {
    if (host.empty()) return;  // which has no address
    memset(static_cast<void*>(host.data()), 0xff, memory_.bytes());
    memory_.send(host.data());
  }
  N* at() const { return static_cast<N*>(memory_.at()); }
  void receive() {
    if (!host.empty()) memory_.receive(host.data());
  }

  std::vector<N> host;

 private:
  Memory memory_;
};

class Tensor {
 public:
  /// Nothing has been stored to it.
  explicit Tensor(const Layout& layout) : layout_(layout), numbers_(layout.offset + layout.count()) {}
  /// of(row, class) are its numbers, which are rounded.
  template <class F>
  Tensor(const Layout& layout, F of) : Tensor(layout) {
    for (int64_t r = 0; r < layout.rows; ++r) {
      for (int64_t c = 0; c < layout.classes; ++c) numbers_.host[place(r, c)] = element(of(r, c));
    }
    numbers_ = Numbers<T>(std::move(numbers_.host));
  }

  const Layout& layout() const { return layout_; }
  Rows rows() const { return layout_.at(numbers_.at()); }
  double operator()(int64_t row, int64_t c) const { return number(numbers_.host[place(row, c)]); }
  void receive() { numbers_.receive(); }
  const std::vector<T>& elements() const { return numbers_.host; }
  /// Whether the elements before the first row are as they were.
  bool begins_intact() const {
    for (int64_t i = 0; i < layout_.offset; ++i) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(&numbers_.host[static_cast<size_t>(i)]);
      for (size_t b = 0; b < sizeof(T); ++b) {
        if (bytes[b] != 0xff) return false;
      }
    }
    return true;
  }

 private:
  size_t place(int64_t row, int64_t c) const { return static_cast<size_t>(layout_.index(row, c)); }
  Layout layout_;
  Numbers<T> numbers_;
};

}  // namespace softkern::tools

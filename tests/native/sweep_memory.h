// SPDX-License-Identifier: Apache-2.0
// The sweep's memory between forbidden pages, its numbers of every type, and calls of kernels.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/cpu/dispatch.h"

namespace {

using namespace softkern;
using namespace softkern::cpu;

/// Memory that ends where a forbidden page begins (at_end), or begins where one ends.
class Guarded {
 public:
  Guarded(size_t bytes, bool at_end) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size_ = (bytes + page - 1) / page * page + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) abort();
    // Without bytes there is no page between them: an emulator may refuse to change none.
    if (bytes > 0 && mprotect(base_ + page, size_ - 2 * page, PROT_READ | PROT_WRITE) != 0) abort();
    data = at_end ? base_ + size_ - page - bytes : base_ + page;
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(base_, size_); }
  std::string bytes() const { return std::string(data, bytes_); }
  char* data;

 private:
  char* base_;
  size_t size_, bytes_;
};

uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 32)) * 0x9e3779b97f4a7c15u;
  return x ^ (x >> 29);
}

uint64_t state;
double uniform() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) * 0x1p-53;
}

constexpr size_t kSize[kElementTypes] = {4, 8, 2, 2};

void put(char* to, int type, double value) {
  const float single = static_cast<float>(value);
  uint32_t bits;
  memcpy(&bits, &single, 4);
  uint16_t narrow = static_cast<uint16_t>(bits >> 16);  // bfloat16
  // float16: exponents re-biased, enough for inputs of a test; what is too large is infinite.
  const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
  const uint32_t sign = bits >> 16 & 0x8000u;
  if (type == kHalf) {
    narrow = static_cast<uint16_t>(
        sign | (std::isnan(value) ? 0x7e00u
                : exponent >= 31  ? 0x7c00u
                : exponent <= 0   ? 0u
                                  : static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 0x3ffu)));
  }
  if (type == kFloat) memcpy(to, &single, 4);
  if (type == kDouble) memcpy(to, &value, 8);
  if (type == kBFloat16 || type == kHalf) memcpy(to, &narrow, 2);
}

/// The bits of an element. The sign and the payload of a NaN are the CPU's, so that all of them are one here.
uint64_t bits_of(const char* p, int type) {
  constexpr uint64_t kNaN = ~uint64_t(0);
  if (type == kDouble) {
    double x;
    uint64_t bits;
    memcpy(&x, p, 8);
    memcpy(&bits, p, 8);
    return x == x ? bits : kNaN;
  }
  if (type == kFloat) {
    float x;
    uint32_t bits;
    memcpy(&x, p, 4);
    memcpy(&bits, p, 4);
    return x == x ? bits : kNaN;
  }
  uint16_t bits;
  memcpy(&bits, p, 2);
  return (bits & 0x7fff) > (type == kBFloat16 ? 0x7f80 : 0x7c00) ? kNaN : bits;
}

struct Case {
  int type;
  int64_t classes, inner, rows;
  bool at_end;
  enum Values { kPlain, kHurting, kShifted } values;
};

/// What an op of one instruction set wrote, and the way that it went.
struct Result {
  std::string op, way;
  int type;
  std::string bytes;
};
using Results = std::vector<Result>;

bool same(const Result& a, const Result& b) {
  const size_t size = kSize[a.type];
  for (size_t i = 0; i < a.bytes.size(); i += size) {
    if (bits_of(&a.bytes[i], a.type) != bits_of(&b.bytes[i], a.type)) return false;
  }
  return true;
}

/// Rows by rows, or each row in chunks if the kernel shares rows of such a call: with the memory that it asks
/// for and no byte more.
class Caller {
 public:
  Caller(const KernelTable& table, const Case& c, bool shared)
      : table_(table), case_(c), chunks_(shared ? (c.classes + kChunkClasses - 1) / kChunkClasses : 0) {}

  /// The way that the kernel went.
  template <class Args>
  const char* operator()(const Kernel<Args>& kernel, const Args& args) const {
    const int count = static_cast<int>(chunks_);
    const size_t shared = count == 0 || kernel.chunk == nullptr ? 0 : kernel.shared_bytes(args, count);
    if (shared == 0) {
      const Guarded scratch(kernel.scratch_bytes(args, case_.rows), case_.at_end);
      return way_of(kernel.rows(args, {0, case_.rows, scratch.data}));
    }
    const Guarded memory(shared, case_.at_end);
    const char* way = "";
    for (int64_t r = 0; r < case_.rows; ++r) {
      for (int step = 0; step < kernel.steps; ++step) {
        for (int i = count - 1; i >= 0; --i) {
          const int64_t begin = i * kChunkClasses;
          const int64_t end = std::min(begin + kChunkClasses, case_.classes);
          way = way_of(kernel.chunk(args, {r, begin, end, i, count, memory.data}, step));
        }
      }
    }
    return way;
  }

 private:
  const char* way_of(const Ran& ran) const {
    if (strcmp(ran.isa, table_.isa) != 0) abort();
    return ran.path;
  }

  const KernelTable& table_;
  const Case& case_;
  int64_t chunks_;
};

}  // namespace

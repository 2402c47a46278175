// SPDX-License-Identifier: Apache-2.0
#include "brgemm.h"

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <utility>

#if __has_include(<ATen/native/CPUBlas.h>)
#include <ATen/native/CPUBlas.h>
#endif

namespace softkern::cpu {

#ifdef CPUBLAS_BRGEMM_BF16BF16F32

namespace {

// The result is computed in blocks of this many rows and columns, the fastest of those tried with AMX for 768
// features. Both operands of a block fit into a second-level cache.
constexpr int64_t kBlockRows = 128, kPanel = 256;

constexpr int64_t even(int64_t k) { return (k + 1) / 2 * 2; }

/// A matrix whose element (i, k) is at data[i * row + k * column].
struct Matrix {
  const uint16_t* data;
  int64_t row, column;
};

uint32_t pair_at(const uint16_t* p) {
  uint32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return pair;
}
constexpr uint32_t pair_of(uint32_t low, uint32_t high) { return (low & 0xffff) | high << 16; }

/// Four pairs of each of four rows become four rows of pairs. GCC and clang make vectors of it.
void transpose_4x4(const uint16_t* from, int64_t from_row, uint32_t* to, int64_t to_row) {
  typedef uint32_t Four __attribute__((vector_size(16)));
  Four r[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&r[i], from + i * from_row, sizeof(Four));
  for (int k = 0; k < 4; ++k) {
    const Four column = {r[0][k], r[1][k], r[2][k], r[3][k]};
    std::memcpy(to + k * to_row, &column, sizeof(Four));
  }
}

/// Copies `rows` x `columns` elements (k, j) so that those of two rows are pairs, the pair (k, k + 1) of
/// column j at to[k / 2 * kPanel + j]: the form that brgemm wants for its second operand. An odd last row
/// gets a partner of zeros.
void pack_pairs(const Matrix& from, int64_t rows, int64_t columns, uint32_t* to) {
  const auto at = [&](int64_t k, int64_t j) -> uint32_t {
    return k < rows ? from.data[k * from.row + j * from.column] : 0;
  };
  if (from.row != 1) {
    for (int64_t k = 0; k < rows; k += 2, to += kPanel) {
      if (from.column == 1 && k + 1 < rows) {
        const uint16_t* const low = from.data + k * from.row;
        const uint16_t* const high = low + from.row;
        for (int64_t j = 0; j < columns; ++j) to[j] = pair_of(low[j], high[j]);
      } else {
        for (int64_t j = 0; j < columns; ++j) to[j] = pair_of(at(k, j), at(k + 1, j));
      }
    }
    return;
  }
  // Pairs are contiguous: a transposition of 32-bit numbers, in blocks of one cache line.
  constexpr int64_t kBlock = 32;
  for (int64_t k0 = 0; k0 < rows; k0 += kBlock) {
    const int64_t k1 = std::min(k0 + kBlock, rows);
    for (int64_t j = 0; j < columns; j += 4) {
      int64_t k = k0;
      if (j + 4 <= columns) {
        for (; k + 8 <= k1; k += 8) {
          transpose_4x4(from.data + j * from.column + k, from.column, to + k / 2 * kPanel + j, kPanel);
        }
      }
      for (; k < k1; k += 2) {
        for (int64_t i = j; i < std::min(j + 4, columns); ++i) {
          to[k / 2 * kPanel + i] = pair_of(at(k, i), at(k + 1, i));
        }
      }
    }
  }
}

/// Copies k_size x m_size elements so that those of each m are contiguous, and even in number. The last one
/// may be a zero.
void pack_rows(const Matrix& a, int64_t k_size, int64_t m_size, uint16_t* to) {
  const int64_t pitch = even(k_size);
  const auto at = [&](int64_t k, int64_t m) -> uint16_t {
    return k < k_size ? a.data[k * a.row + m * a.column] : uint16_t{0};
  };
  for (int64_t k = 0; k < pitch; k += 2) {
    int64_t m = 0;
    if (a.column == 1 && k + 1 < k_size) {
      for (; m + 2 <= m_size; m += 2) {
        const uint32_t first = pair_at(a.data + k * a.row + m),
                       second = pair_at(a.data + (k + 1) * a.row + m);
        const uint32_t low = pair_of(first, second), high = first >> 16 | (second & 0xffff0000);
        std::memcpy(to + m * pitch + k, &low, sizeof(low));
        std::memcpy(to + (m + 1) * pitch + k, &high, sizeof(high));
      }
    }
    for (; m < m_size; ++m) {
      to[m * pitch + k] = at(k, m);
      to[m * pitch + k + 1] = at(k + 1, m);
    }
  }
}

struct Product {
  Matrix a;  // (M, K)
  Matrix b;  // element (k, j)
  int64_t m, n, k;
  float* out;
  int64_t out_row;
  bool add;
};

/// out (+)= a b for a block of rows and a panel of columns, whose second operand is packed.
void multiply(const Product& p, int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t a_row,
              const uint32_t* packed_b, float* out, bool add) {
  at::native::cpublas::brgemm(m, n, even(k), a_row, kPanel, p.out_row, add,
                              reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(packed_b), out, /*is_vnni=*/true);
}

/// The rows [i, i + m) and [k0, k0 + k) of the first operand as brgemm takes them: in place, or in `packed`.
std::pair<const uint16_t*, int64_t> rows_of(const Product& p, int64_t i, int64_t m, int64_t k0, int64_t k,
                                            uint16_t* packed) {
  const uint16_t* const a = p.a.data + i * p.a.row + k0 * p.a.column;
  // With an odd k, brgemm would read an element behind each row, and 0 times it may be NaN.
  if (p.a.column == 1 && k == even(k)) return {a, p.a.row};
  pack_rows({a, p.a.column, p.a.row}, k, m, packed);
  return {packed, even(k)};
}

Matrix panel_of(const Product& p, int64_t k0, int64_t first) {
  return {p.b.data + k0 * p.b.row + first * p.b.column, p.b.row, p.b.column};
}

/// f(begin, end) on torch's threads. An exception of f must not cross the C interface.
template <class F>
void in_parallel(int64_t count, const F& f) {
  struct Call {
    const F& f;
    std::atomic<bool> failed{false};
  } call{f};
  const auto on_thread = [](int64_t begin, int64_t end, void* context) {
    Call& c = *static_cast<Call*>(context);
    try {
      c.f(begin, end);
    } catch (...) {
      c.failed = true;
    }
  };
  const bool done = torch_parallel_for(0, count, 1, on_thread, &call) == 0;
  TORCH_CHECK(done && !call.failed, "softkern: a product of bfloat16 matrices failed");
}

template <class T>
std::unique_ptr<T[]> memory_for(int64_t numbers) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(numbers)]);
}

int64_t panels_of(const Product& p) { return (p.n + kPanel - 1) / kPanel; }

/// For many columns: a thread packs a panel of the second operand and walks down the rows.
void by_panels(const Product& p) {
  in_parallel(panels_of(p), [&](int64_t begin, int64_t end) {
    const int64_t most = even(std::min(p.k, kMostPackedK));
    const auto b = memory_for<uint32_t>(most / 2 * kPanel);
    const auto a = memory_for<uint16_t>(most * kBlockRows);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kPanel, n = std::min(kPanel, p.n - first);
      for (int64_t k0 = 0; k0 < p.k; k0 += kMostPackedK) {
        const int64_t k = std::min(kMostPackedK, p.k - k0);
        pack_pairs(panel_of(p, k0, first), k, n, b.get());
        for (int64_t i = 0; i < p.m; i += kBlockRows) {
          const int64_t m = std::min(kBlockRows, p.m - i);
          const auto [rows, row] = rows_of(p, i, m, k0, k, a.get());
          multiply(p, m, n, k, rows, row, b.get(), p.out + i * p.out_row + first, p.add || k0 > 0);
        }
      }
    }
    at::native::cpublas::brgemm_release(/*is_vnni=*/true);
  });
}

/// For few columns: the threads pack the second operand together, and share the blocks of the result. A block
/// of rows, if it has to be packed, is packed once for all panels that a thread multiplies it with.
void by_blocks(const Product& p) {
  const int64_t panels = panels_of(p), blocks = (p.m + kBlockRows - 1) / kBlockRows;
  const int64_t most = even(std::min(p.k, kMostPackedK));
  const int64_t step = most / 2 * kPanel;
  const auto all = memory_for<uint32_t>(panels * step);
  for (int64_t k0 = 0; k0 < p.k; k0 += kMostPackedK) {
    const int64_t k = std::min(kMostPackedK, p.k - k0);
    in_parallel(panels, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * kPanel;
        pack_pairs(panel_of(p, k0, first), k, std::min(kPanel, p.n - first), all.get() + panel * step);
      }
    });
    in_parallel(blocks * panels, [&](int64_t begin, int64_t end) {
      const auto packed = memory_for<uint16_t>(most * kBlockRows);
      while (begin < end) {
        const int64_t block = begin / panels, i = block * kBlockRows, m = std::min(kBlockRows, p.m - i);
        const auto [rows, row] = rows_of(p, i, m, k0, k, packed.get());
        for (const int64_t stop = std::min(end, (block + 1) * panels); begin < stop; ++begin) {
          const int64_t panel = begin % panels, first = panel * kPanel;
          multiply(p, m, std::min(kPanel, p.n - first), k, rows, row, all.get() + panel * step,
                   p.out + i * p.out_row + first, p.add || k0 > 0);
        }
      }
      at::native::cpublas::brgemm_release(/*is_vnni=*/true);
    });
  }
}

void compute(const Product& p) {
  if (p.m == 0 || p.n == 0 || p.k == 0) return;
  uint32_t threads = 1;
  TORCH_CHECK(torch_get_num_threads(&threads) == 0, "softkern: torch does not say its number of threads");
  // Panels that the threads can share evenly. Neither way changes any bits.
  if (p.n > p.m && panels_of(p) >= int64_t{4} * threads) {
    by_panels(p);
  } else {
    by_blocks(p);
  }
}

Matrix matrix_of(const Tensor& x) {
  return {static_cast<const uint16_t*>(x.const_data_ptr()), x.stride(0), x.stride(1)};
}
Matrix transposed(const Matrix& x) { return {x.data, x.column, x.row}; }

}  // namespace

bool has_brgemm() {
  static const bool has = at::native::cpublas::could_pack(at::kBFloat16);
  return has;
}

void product_nt(const Tensor& x, const Tensor& w, const Tensor& out) {
  compute({matrix_of(x), transposed(matrix_of(w)), x.size(0), w.size(0), x.size(1), out.data_ptr<float>(),
           out.stride(0), false});
}

void product_nn(const Tensor& a, const Tensor& b, const Tensor& out, bool add) {
  compute({matrix_of(a), matrix_of(b), a.size(0), b.size(1), a.size(1), out.data_ptr<float>(), out.stride(0),
           add});
}

void product_tn(const Tensor& a, const Tensor& b, const Tensor& out, bool add) {
  compute({transposed(matrix_of(a)), matrix_of(b), a.size(1), b.size(1), a.size(0), out.data_ptr<float>(),
           out.stride(0), add});
}

#else

bool has_brgemm() { return false; }
void product_nt(const Tensor&, const Tensor&, const Tensor&) { TORCH_CHECK(false, "no brgemm"); }
void product_nn(const Tensor&, const Tensor&, const Tensor&, bool) { TORCH_CHECK(false, "no brgemm"); }
void product_tn(const Tensor&, const Tensor&, const Tensor&, bool) { TORCH_CHECK(false, "no brgemm"); }

#endif

}  // namespace softkern::cpu

// SPDX-License-Identifier: Apache-2.0
#include "brgemm.h"

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#if __has_include(<ATen/native/CPUBlas.h>)
#include <ATen/native/CPUBlas.h>
#endif

namespace softkern::cpu {

#ifdef CPUBLAS_BRGEMM_BF16BF16F32

namespace {

// The result is computed in blocks of this many rows and columns: the fastest of those tried with AMX, for K
// from 64 to 4096. Both operands of a block fit into a second-level cache.
constexpr int64_t kBlockRows = 64, kPanel = 128, kMostK = 2048;

constexpr int64_t even(int64_t k) { return (k + 1) / 2 * 2; }

/// A matrix whose element (i, k) is at data[i * row + k * column].
struct Matrix {
  const uint16_t* data;
  int64_t row, column;
};

/// Copies `rows` x `columns` elements so that element (k, j) is at to[(k / 2 * pitch + j) * 2 + k % 2], the
/// form that brgemm wants for its second operand. from(k, j) is at data[k * row + j * column]. An odd last
/// row gets a partner of zeros.
void pack_pairs(const Matrix& from, int64_t rows, int64_t columns, int64_t pitch, uint16_t* to) {
  // Blocks, because one of the two matrices is walked across its rows.
  constexpr int64_t kBlock = 32;
  for (int64_t k0 = 0; k0 < rows; k0 += kBlock) {
    const int64_t k1 = std::min(k0 + kBlock, rows);
    for (int64_t j = 0; j < columns; ++j) {
      const uint16_t* const source = from.data + j * from.column;
      uint16_t* const target = to + j * 2;
      int64_t k = k0;
      for (; k + 2 <= k1; k += 2) {
        uint16_t* const pair = target + k * pitch;
        pair[0] = source[k * from.row];
        pair[1] = source[(k + 1) * from.row];
      }
      if (k < k1) {
        target[k * pitch] = source[k * from.row];
        target[k * pitch + 1] = 0;
      }
    }
  }
}

/// Copies the transpose of a (K x M) so that rows are contiguous and have an even number of elements.
void pack_transpose(const Matrix& a, int64_t k_size, int64_t m_size, uint16_t* to) {
  constexpr int64_t kBlock = 32;
  const int64_t pitch = even(k_size);
  for (int64_t k0 = 0; k0 < k_size; k0 += kBlock) {
    const int64_t k1 = std::min(k0 + kBlock, k_size);
    for (int64_t m = 0; m < m_size; ++m) {
      for (int64_t k = k0; k < k1; ++k) to[m * pitch + k] = a.data[k * a.row + m * a.column];
    }
  }
  if (pitch != k_size) {
    for (int64_t m = 0; m < m_size; ++m) to[m * pitch + k_size] = 0;
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

/// Columns [first, first + kPanel) and rows [begin, end) of the result.
void compute_panel(const Product& p, int64_t first, int64_t begin, int64_t end, uint16_t* packed_b,
                   uint16_t* packed_a) {
  using at::BFloat16;
  const int64_t n = std::min(kPanel, p.n - first);
  for (int64_t k0 = 0; k0 < p.k; k0 += kMostK) {
    const int64_t k = std::min(kMostK, p.k - k0);
    pack_pairs({p.b.data + k0 * p.b.row + first * p.b.column, p.b.row, p.b.column}, k, n, kPanel, packed_b);
    for (int64_t i = begin; i < end; i += kBlockRows) {
      const int64_t m = std::min(kBlockRows, end - i);
      const uint16_t* a = p.a.data + i * p.a.row + k0 * p.a.column;
      int64_t a_row = p.a.row;
      if (p.a.column != 1 || k != even(k)) {
        // With an odd k, brgemm would read an element behind each row, and 0 times it may be NaN.
        pack_transpose({a, p.a.column, p.a.row}, k, m, packed_a);
        a = packed_a;
        a_row = even(k);
      }
      at::native::cpublas::brgemm(
          m, n, even(k), a_row, kPanel, p.out_row, p.add || k0 > 0, reinterpret_cast<const BFloat16*>(a),
          reinterpret_cast<const BFloat16*>(packed_b), p.out + i * p.out_row + first, /*is_vnni=*/true);
    }
  }
}

void compute(const Product& p) {
  if (p.m == 0 || p.n == 0 || p.k == 0) return;
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  struct Call {
    const Product& p;
    int64_t panels, groups, group;  // groups of rows, so that all threads have work
    std::atomic<bool> failed{false};
  } call{p, (p.n + kPanel - 1) / kPanel, 1, 0};
  const int64_t wanted = 4 * static_cast<int64_t>(threads), blocks = (p.m + kBlockRows - 1) / kBlockRows;
  if (threads > 1) call.groups = std::clamp<int64_t>((wanted + call.panels - 1) / call.panels, 1, blocks);
  call.group = (blocks + call.groups - 1) / call.groups * kBlockRows;
  const auto on_thread = [](int64_t begin, int64_t end, void* context) {
    Call& c = *static_cast<Call*>(context);
    const Product& p = c.p;
    const int64_t k = even(std::min(p.k, kMostK));
    try {
      const std::unique_ptr<uint16_t[]> packed(new uint16_t[static_cast<size_t>(k * (kPanel + kBlockRows))]);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % c.panels * kPanel, row = i / c.panels * c.group;
        compute_panel(p, first, row, std::min(row + c.group, p.m), packed.get(), packed.get() + k * kPanel);
      }
      at::native::cpublas::brgemm_release(/*is_vnni=*/true);
    } catch (...) {  // an exception must not cross the C interface
      c.failed = true;
    }
  };
  const bool done = torch_parallel_for(0, call.panels * call.groups, 1, on_thread, &call) == 0;
  TORCH_CHECK(done && !call.failed, "softkern: a product of bfloat16 matrices failed");
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

// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 matrices of CPU tensors with a float32 result, which ATen's mm does not have on a CPU.
// The blocks are oneDNN's brgemm, which torch exports; it uses AMX where the CPU has it. An element is a sum
// over k in an order that depends on the size of k alone: not on the number of rows, their order or threads.
#pragma once

#include <ATen/core/Tensor.h>

namespace softkern::cpu {

using at::Tensor;

/// A product is a sum of products of at most so many k, each of which has its operands packed.
constexpr int64_t kMostPackedK = 1024;

/// Whether this torch and this CPU have the blocks.
bool has_brgemm();

/// out = x w^T for x (M, K) and w (N, K), with an even K.
void product_nt(const Tensor& x, const Tensor& w, const Tensor& out);
/// out = a b, or out += a b, for a (M, K) and b (K, N).
void product_nn(const Tensor& a, const Tensor& b, const Tensor& out, bool add);
/// out = a^T b, or out += a^T b, for a (K, M) and b (K, N).
void product_tn(const Tensor& a, const Tensor& b, const Tensor& out, bool add);

}  // namespace softkern::cpu

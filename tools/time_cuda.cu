// SPDX-License-Identifier: Apache-2.0
// Times the CUDA kernels alone, without torch and its launches, against a copy of as many bytes on the
// device: medians of events around each call, the second-level cache overwritten before it. Prints JSON; see
// tools/cuda_times.py.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "api.h"

namespace softkern::cuda {
struct Softmax;
struct LogSoftmax;
}  // namespace softkern::cuda

namespace {

using softkern::BFloat16;
using softkern::Rows;
using softkern::Shape;
using namespace softkern::cuda;

constexpr int kCalls = 9;
constexpr size_t kFlush = size_t{128} << 20;  // twice an H100's second-level cache, and more
void* flush = nullptr;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "time_cuda: %s\n", cudaGetErrorString(error));
  exit(1);
}

/// Numbers between -6 and 6, of 4 or 2 bytes.
__global__ void fill(void* at, int64_t count, bool half, uint32_t seed) {
  const int64_t first = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  for (int64_t i = first; i < count; i += gridDim.x * static_cast<int64_t>(blockDim.x)) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u + seed;
    h = (h ^ h >> 15) * 2246822519u;
    h ^= h >> 13;
    const float x = 6.0f * (static_cast<float>(h & 0xffff) + static_cast<float>(h >> 16)) / 65536.0f - 6.0f;
    if (half) {
      static_cast<uint16_t*>(at)[i] = static_cast<uint16_t>(__float_as_uint(x) >> 16);
    } else {
      static_cast<float*>(at)[i] = x;
    }
  }
}

__global__ void fill_targets(int64_t* at, int rows, int classes) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < rows) at[i] = i * int64_t{7919} % classes;
}

template <class F>
float microseconds(F call) {
  cudaEvent_t start, end;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i <= kCalls; ++i) {
    check(cudaMemsetAsync(flush, 0, kFlush));
    check(cudaEventRecord(start));
    call();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start, end));
    if (i > 0) times.push_back(1000 * milliseconds);  // the first call loads the kernel
  }
  check(cudaEventDestroy(start));
  check(cudaEventDestroy(end));
  std::nth_element(times.begin(), times.begin() + kCalls / 2, times.end());
  return times[kCalls / 2];
}

bool comma = false;

template <class T>
void time_shape(const char* dtype, int rows, int classes) {
  const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(classes), bytes = count * sizeof(T);
  void *x, *y, *out, *loss;
  int64_t* target;
  for (void** p : {&x, &y, &out}) check(cudaMalloc(p, bytes));
  check(cudaMalloc(&target, rows * sizeof(int64_t)));
  check(cudaMalloc(&loss, rows * sizeof(double)));
  fill<<<2048, 256>>>(x, static_cast<int64_t>(count), sizeof(T) == 2, 1);
  fill<<<2048, 256>>>(y, static_cast<int64_t>(count), sizeof(T) == 2, 2);
  fill_targets<<<(rows + 255) / 256, 256>>>(target, rows, classes);
  const float copy = microseconds([&] { check(cudaMemcpyAsync(out, x, bytes, cudaMemcpyDeviceToDevice)); });

  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  const DeviceStream device{nullptr, major >= 9};
  const Shape shape{classes, 1};
  const auto tensor = [&](void* data) { return Rows{data, classes, 1, 1}; };
  const auto time = [&](const char* op, auto call) {
    Outcome outcome{};
    const float taken = microseconds([&] { outcome = call(); });
    if (outcome.error != nullptr) {
      fprintf(stderr, "time_cuda: %s of %dx%d: %s\n", op, rows, classes, outcome.error);
      exit(1);
    }
    printf("%s\n{\"dtype\": \"%s\", \"rows\": %d, \"classes\": %d, \"op\": \"%s\", \"way\": \"%s\", ",
           comma ? "," : "", dtype, rows, classes, op, outcome.path);
    printf("\"microseconds\": %.1f, \"copy_microseconds\": %.1f}", taken, copy);
    comma = true;
  };
  const ForwardArgs forward{shape, rows, tensor(x), tensor(out)};
  time("softmax", [&] { return compute<Softmax, T>(forward, device); });
  time("log_softmax", [&] { return compute<LogSoftmax, T>(forward, device); });
  const BackwardArgs backward{shape, rows, tensor(y), tensor(x), tensor(out)};
  time("softmax backward", [&] { return compute<Softmax, T>(backward, device); });
  CrossEntropyArgs losses{};
  losses.shape = shape;
  losses.rows = rows;
  losses.logits = tensor(x);
  losses.target = target;
  losses.loss = loss;
  losses.grad_factor = 1.0 / rows;
  time("cross_entropy", [&] { return cross_entropy<T>(losses, device); });
  losses.grad = tensor(out);
  time("cross_entropy with gradient", [&] { return cross_entropy<T>(losses, device); });
  for (void* p : {x, y, out, loss, static_cast<void*>(target)}) check(cudaFree(p));
}

}  // namespace

int main() {
  check(cudaMalloc(&flush, kFlush));
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  printf("{\"device\": \"%s\", \"cuda\": %d, \"rows\": [", properties.name, CUDART_VERSION);
  const int shapes[][2] = {{32768, 256},  {32768, 1024}, {32768, 4096}, {16384, 8192}, {8192, 16384},
                           {4096, 32000}, {4096, 50257}, {4096, 65536}, {4096, 128256}};
  for (const auto& shape : shapes) {
    time_shape<BFloat16>("bfloat16", shape[0], shape[1]);
    time_shape<float>("float32", shape[0], shape[1]);
  }
  printf("\n]}\n");
}

// As much of CUDA's runtime as the kernels use, on a CPU: a launch runs its blocks one after another, see device.cuh.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline void sincospif(float x, float* sine, float* cosine) {
  const double angle = (double)x * 3.14159265358979323846;
  *sine = (float)std::sin(angle), *cosine = (float)std::cos(angle);
}
inline float __expf(float x) { return std::exp(x); }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline const char* cudaGetErrorString(cudaError_t) { return "emulated error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream);
// Any kernel of one operand.
cudaError_t run_kernel(const std::function<void()>& kernel, dim3 grid, dim3 block, size_t shared);
template <typename Operand>
cudaError_t cudaLaunchKernel(void (*kernel)(const Operand), dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t) {
  return run_kernel([=] { kernel(*static_cast<const Operand*>(arguments[0])); }, grid, block, shared);
}

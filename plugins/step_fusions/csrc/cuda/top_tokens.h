// The best scores of rows of logits, in order. Plain C layout.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lineahead::fusions {

constexpr int kMostTop = 64;

// Keys are those of token_key.cuh.
struct TopTokens {
  int32_t rows, width, count;  // count: at most kMostTop and the width
  const float* logits;         // [rows, width]
  uint64_t* keys;              // [rows, count], largest first
};

}  // namespace lineahead::fusions

extern "C" {
// Enqueue a call on `stream` (a cudaStream_t). Returns 0, or an error code with `message` filled.
int lineahead_top_tokens(const lineahead::fusions::TopTokens* call, void* stream, char* message, size_t message_size);
}

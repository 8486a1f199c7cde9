// What stands between the steps of a draft and the call that verifies it, on a GPU. Plain C layout.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lineahead::fusions {

// Where a draft begins: hidden states that lie anywhere, and the roots, the first of each sequence's nodes.
struct DraftBegin {
  int32_t rows, width, nodes;
  const uint64_t* sources;  // address of each row's `width` numbers; 0 for zeros
  const int32_t* ids;       // [rows, nodes]
  float* hidden;            // [rows, width]
  int32_t* tokens;          // [rows]
};

// The token that a step proposes: the name of its best score, the first among equals, as node `place` and for the next step.
struct DraftChoice {
  int32_t rows, width, nodes, place;
  const float* scores;   // [rows, width]
  const int32_t* names;  // [width]
  int32_t* ids;          // [rows, nodes]
  int32_t* tokens;       // [rows]
};

}  // namespace lineahead::fusions

extern "C" {
// Enqueue a call on `stream` (a cudaStream_t). Returns 0, or an error code with `message` filled.
int lineahead_draft_begin(const lineahead::fusions::DraftBegin* call, void* stream, char* message, size_t message_size);
int lineahead_draft_choice(const lineahead::fusions::DraftChoice* call, void* stream, char* message, size_t message_size);
}

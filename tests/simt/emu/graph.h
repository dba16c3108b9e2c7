// Captures of streams into graphs, whose nodes are closures in the order of their calls.
#ifndef SIMT_EMU_GRAPH_H
#define SIMT_EMU_GRAPH_H

#include <pthread.h>

#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "emu/device_memory.h"
#include "emu/stream.h"

namespace simt {

using Work = std::function<cudaError_t()>;

struct Graph {
  std::vector<Work> nodes;
  std::set<void*> memory;  // what its nodes allocate
  ~Graph();
};

struct Capture {
  uint64_t id;
  cudaStream_t origin;
  cudaStreamCaptureMode mode;
  pthread_t thread;
  bool valid;
  std::shared_ptr<Graph> graph;
  std::set<void*> freed;
  std::map<cudaStream_t, Before> seen;  // by stream; its own entry counts its work

  cudaError_t spoil(cudaError_t error) {
    valid = false;
    return error;
  }
  void add(cudaStream_t stream, Work work) {
    ++seen[stream][stream];
    graph->nodes.push_back(std::move(work));
  }
};

// Whether a stream accepts work, and the capture that takes it, if any.
cudaError_t enter_stream(cudaStream_t stream, Capture** capture);
// Runs the work at once, or adds it to a graph.
cudaError_t submit(cudaStream_t stream, Work work);
// Nodes that allocate and free memory.
cudaError_t allocate_in(Capture& capture, cudaStream_t stream, void** p, size_t bytes);
cudaError_t free_in(Capture& capture, cudaStream_t stream, void* p);
// Ends captures where a call is made that they forbid to whole threads or processes.
cudaError_t refuse_unsafe();
// The capture with this number, if it is still active.
Capture* capture_with(uint64_t id);
void forget_stream(cudaStream_t stream);

}  // namespace simt

#endif

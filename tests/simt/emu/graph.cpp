#include "emu/graph.h"

#include <stdio.h>

#include <utility>

struct CUgraph_st {
  std::shared_ptr<simt::Graph> graph;
};

struct CUgraphExec_st {
  std::shared_ptr<simt::Graph> graph;
  unsigned long long flags;
};

namespace simt {
namespace {

// Never destroyed, so that a program's remaining graphs are not reported as leaks and do not
// outlive their memory.
std::map<uint64_t, std::unique_ptr<Capture>>& captures =
    *new std::map<uint64_t, std::unique_ptr<Capture>>;
std::set<cudaGraph_t>& graphs = *new std::set<cudaGraph_t>;
std::set<cudaGraphExec_t>& execs = *new std::set<cudaGraphExec_t>;
uint64_t last_id = 0;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool is_legacy(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy; }

Capture* of(cudaStream_t stream) {
  return is_legacy(stream) || stream == cudaStreamPerThread ? nullptr : stream->capture;
}

// Whether the legacy stream would wait for this stream.
Capture* blocking_capture() {
  for (const auto& [id, c] : captures) {
    for (const auto& [stream, seen] : c->seen) {
      if ((stream->flags & cudaStreamNonBlocking) == 0) return c.get();
    }
  }
  return nullptr;
}

bool is_joined(const Capture& c) {
  const Before& known = c.seen.at(c.origin);
  for (const auto& [stream, seen] : c.seen) {
    const auto found = known.find(stream);
    if (found == known.end() || found->second != seen.at(stream)) return false;
  }
  return true;
}

cudaError_t end(Capture& c, std::shared_ptr<Graph>* graph) {
  cudaError_t error = c.valid ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
  if (error == cudaSuccess && !is_joined(c)) error = cudaErrorStreamCaptureUnjoined;
  if (error == cudaSuccess) *graph = c.graph;
  for (const auto& [stream, seen] : c.seen) stream->capture = nullptr;
  captures.erase(c.id);
  return error;
}

// Memory that a launch has left allocated must be freed before the next launch.
cudaError_t free_leftovers(const CUgraphExec_st& exec) {
  for (void* p : exec.graph->memory) {
    if (!is_device_range(p, 1)) continue;
    if ((exec.flags & cudaGraphInstantiateFlagAutoFreeOnLaunch) == 0) {
      fprintf(stderr, "SIMT: a graph is launched again that did not free %p\n", p);
      return cudaErrorInvalidValue;
    }
    set_graph_memory_asleep(p, true);
  }
  return cudaSuccess;
}

}  // namespace

Graph::~Graph() {
  for (void* p : memory) release_graph_memory(p);
}

cudaError_t enter_stream(cudaStream_t stream, Capture** capture) {
  *capture = nullptr;
  if (const cudaError_t error = check_stream(stream); error != cudaSuccess) return error;
  if (is_legacy(stream)) {
    Capture* c = blocking_capture();
    return c == nullptr ? cudaSuccess : c->spoil(cudaErrorStreamCaptureImplicit);
  }
  *capture = of(stream);
  return *capture == nullptr || (*capture)->valid ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
}

cudaError_t submit(cudaStream_t stream, Work work) {
  Capture* capture;
  const cudaError_t error = enter_stream(stream, &capture);
  if (error != cudaSuccess) return error;
  if (capture == nullptr) return work();
  capture->add(stream, std::move(work));
  return cudaSuccess;
}

cudaError_t refuse_unsafe() {
  cudaError_t error = cudaSuccess;
  for (const auto& [id, c] : captures) {
    const bool here = pthread_equal(c->thread, pthread_self()) != 0;
    const bool global =
        c->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
    if (thread_mode != cudaStreamCaptureModeRelaxed &&
        (global || (c->mode != cudaStreamCaptureModeRelaxed && here))) {
      error = c->spoil(cudaErrorStreamCaptureUnsupported);
    }
  }
  return error;
}

cudaError_t allocate_in(Capture& capture, cudaStream_t stream, void** p, size_t bytes) {
  const cudaError_t error = take_graph_memory(p, bytes);
  if (error != cudaSuccess || *p == nullptr) return error;
  void* made = *p;
  capture.graph->memory.insert(made);
  capture.freed.erase(made);
  capture.add(stream, [made] {
    set_graph_memory_asleep(made, false);
    return cudaSuccess;
  });
  return cudaSuccess;
}

cudaError_t free_in(Capture& capture, cudaStream_t stream, void* p) {
  if (capture.graph->memory.count(p) == 0 || !capture.freed.insert(p).second) {
    fprintf(stderr, "SIMT: %p is freed in a capture, which has not allocated it\n", p);
    return capture.spoil(cudaErrorInvalidValue);
  }
  capture.add(stream, [p] {
    set_graph_memory_asleep(p, true);
    return cudaSuccess;
  });
  return cudaSuccess;
}

Capture* capture_with(uint64_t id) {
  const auto found = captures.find(id);
  return found == captures.end() ? nullptr : found->second.get();
}

void forget_stream(cudaStream_t stream) {
  if (Capture* c = of(stream); c != nullptr) {
    c->spoil(cudaSuccess);
    c->seen.erase(stream);
    if (c->seen.empty()) captures.erase(c->id);
  }
}

}  // namespace simt

using simt::call;
using simt::Capture;

extern "C" {

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id) {
  return call([&] {
    *status = cudaStreamCaptureStatusNone;
    if (id != nullptr) *id = 0;
    simt::fault_if_destroyed(stream, simt::Site::here());
    const cudaError_t error = simt::check_stream(stream);
    if (error != cudaSuccess) return error;
    if (simt::is_legacy(stream) && simt::blocking_capture() != nullptr) {
      return cudaErrorStreamCaptureImplicit;
    }
    const Capture* c = simt::of(stream);
    if (c == nullptr) return cudaSuccess;
    *status = c->valid ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusInvalidated;
    if (id != nullptr && c->valid) *id = c->id;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(stream, status, nullptr);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call([&] {
    const cudaError_t error = simt::check_stream(stream);
    if (error != cudaSuccess) return error;
    if (simt::is_legacy(stream) || stream == cudaStreamPerThread) {
      return cudaErrorStreamCaptureUnsupported;
    }
    if (stream->capture != nullptr) return cudaErrorIllegalState;
    auto made = std::make_unique<Capture>();
    made->id = ++simt::last_id;
    made->origin = stream;
    made->mode = mode;
    made->thread = pthread_self();
    made->valid = true;
    made->graph = std::make_shared<simt::Graph>();
    made->seen[stream][stream] = 0;
    stream->capture = made.get();
    simt::captures[made->id] = std::move(made);
    return cudaSuccess;
  });
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  if (*mode > cudaStreamCaptureModeRelaxed) return simt::set_error(cudaErrorInvalidValue);
  std::swap(*mode, simt::thread_mode);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call([&] {
    *graph = nullptr;
    const cudaError_t error = simt::check_stream(stream);
    if (error != cudaSuccess) return error;
    Capture* c = simt::of(stream);
    if (c == nullptr) return cudaErrorIllegalState;
    if (c->origin != stream) return c->spoil(cudaErrorStreamCaptureUnmatched);
    std::shared_ptr<simt::Graph> made;
    const cudaError_t ended = simt::end(*c, &made);
    if (ended != cudaSuccess) return ended;
    *graph = new CUgraph_st{made};
    simt::graphs.insert(*graph);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return call([&] {
    if (simt::graphs.count(graph) == 0 || nodes != nullptr) return cudaErrorInvalidValue;
    *count = graph->graph->nodes.size();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags) {
  return call([&] {
    if (simt::graphs.count(graph) == 0) return cudaErrorInvalidValue;
    *exec = new CUgraphExec_st{graph->graph, flags};
    simt::execs.insert(*exec);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return call([&] {
    const simt::DeviceAccess access;
    if (simt::execs.count(exec) == 0) return cudaErrorInvalidValue;
    Capture* capture;
    cudaError_t error = simt::enter_stream(stream, &capture);
    if (capture != nullptr) return capture->spoil(cudaErrorStreamCaptureUnsupported);
    if (error == cudaSuccess) error = simt::free_leftovers(*exec);
    for (const simt::Work& work : exec->graph->nodes) {
      if (error == cudaSuccess) error = work();
      if (error == cudaSuccess) error = simt::set_error(cudaSuccess);  // a kernel's error is sticky
    }
    return error;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return call([&] {
    const simt::DeviceAccess access;
    if (simt::execs.erase(exec) == 0) return cudaErrorInvalidValue;
    delete exec;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call([&] {
    const simt::DeviceAccess access;
    if (simt::graphs.erase(graph) == 0) return cudaErrorInvalidValue;
    delete graph;
    return cudaSuccess;
  });
}
}

// What every handler does around its body: it says which ABI it knows, and keeps out of an
// interpreter that is being shut down.
#ifndef MPEMBED_BINDINGS_XLA_HANDLER_H
#define MPEMBED_BINDINGS_XLA_HANDLER_H

#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "mpembed/_bindings/xla/abi.h"

namespace mpembed_xla {

// Takes the interpreter's lock; returns a Code, and a message unless that is kOk.
using Body = int (*)(const CallFrame*, std::string*);

inline std::atomic<int> running{0};
inline std::atomic<bool> stopped{false};

class Entry {
 public:
  Entry() { running.fetch_add(1); }
  ~Entry() { running.fetch_sub(1); }
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;
};

// Lets no handler begin any more, and waits for those that run. Without the interpreter's lock.
inline void stop() {
  stopped = true;
  while (running > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// In a forked child.
inline void none_runs() { running = 0; }

inline Error* error(const Api* api, int code, const char* message) {
  ErrorArguments made{sizeof(ErrorArguments), nullptr, message, code};
  return api->create_error(&made);
}

// The runtime asks what a handler was compiled for. Within a major version structs only grow, so
// what is used here has its place in every minor one: the runtime's own is the answer.
inline void describe(const CallFrame* frame, MetadataExtension* extension) {
  Metadata* metadata = extension->metadata;
  const Version& runtime = frame->api->version;
  metadata->version = runtime;
  metadata->version.extensions = nullptr;
  metadata->version.major = kMajorVersion;
  metadata->traits = 0;
}

inline bool known(const CallFrame* frame) {
  return frame->api->version.major == kMajorVersion && frame->struct_size >= sizeof(CallFrame) &&
         frame->arguments.struct_size == sizeof(Values) &&
         frame->results.struct_size == sizeof(Values);
}

inline Error* handle(const CallFrame* frame, Body body) {
  if (frame->extensions != nullptr && frame->extensions->type == kMetadata) {
    describe(frame, reinterpret_cast<MetadataExtension*>(frame->extensions));
    return nullptr;
  }
  if (!known(frame) || frame->stage != kExecute) {
    return error(frame->api, kUnimplemented,
                 "mpembed: this jaxlib's interface of foreign functions is not the one that "
                 "mpembed.jax knows: install the release of jax that docs/jax.md names");
  }
  const Entry entry;
  if (stopped) return error(frame->api, kCancelled, "mpembed: the interpreter ends");
  std::string message;
  const int code = body(frame, &message);
  return code == kOk ? nullptr : error(frame->api, code, message.c_str());
}

}  // namespace mpembed_xla

#endif

// What every handler does around its body: it says which ABI it knows, asks where a program runs,
// and keeps out of an interpreter that is being shut down.
#ifndef MPEMBED_BINDINGS_XLA_HANDLER_H
#define MPEMBED_BINDINGS_XLA_HANDLER_H

#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "mpembed/_bindings/xla/abi.h"

namespace mpembed_xla {

constexpr int kHost = -1;  // no device: buffers in the host's memory

// Where a program's buffers are, and on what stream its work is queued.
struct Place {
  int32_t device = kHost;
  void* stream = nullptr;
};

// Takes the interpreter's lock; returns a Code, and a message unless that is kOk.
using Body = int (*)(const CallFrame*, const Place*, std::string*);

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
// what is used here has its place in every minor one: the runtime's own is the answer. No trait: a
// call is never captured in a command buffer, because no two do the same device work.
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

inline bool known_on_device(const CallFrame* frame) {
  return frame->api->struct_size >= sizeof(Api) &&
         frame->attributes.struct_size == sizeof(Attributes);
}

// Asks where a program runs; returns the runtime's own error.
inline Error* locate(const CallFrame* frame, Place* place) {
  StreamArguments stream{sizeof(StreamArguments), nullptr, frame->context, nullptr};
  DeviceArguments device{sizeof(DeviceArguments), nullptr, frame->context, 0};
  if (Error* failed = frame->api->get_stream(&stream)) return failed;
  if (Error* failed = frame->api->get_device(&device)) return failed;
  *place = {device.device, stream.stream};
  return nullptr;
}

// An attribute that is an int64; -1 where there is none of the name.
inline int64_t number_attribute(const CallFrame* frame, const char* name) {
  const Attributes& all = frame->attributes;
  for (int64_t i = 0; i < all.size; ++i) {
    const Text& text = *all.names[i];
    if (all.types[i] != kScalar || text.size != std::strlen(name)) continue;
    const auto* scalar = static_cast<const Scalar*>(all.values[i]);
    if (std::memcmp(text.begin, name, text.size) == 0 && scalar->type == kS64) {
      return *static_cast<const int64_t*>(scalar->value);
    }
  }
  return -1;
}

inline Error* handle(const CallFrame* frame, bool on_device, Body body) {
  if (frame->extensions != nullptr && frame->extensions->type == kMetadata) {
    describe(frame, reinterpret_cast<MetadataExtension*>(frame->extensions));
    return nullptr;
  }
  if (!known(frame) || frame->stage != kExecute || (on_device && !known_on_device(frame))) {
    return error(frame->api, kUnimplemented,
                 "mpembed: this jaxlib's interface of foreign functions is not the one that "
                 "mpembed.jax knows: install the release of jax that docs/jax.md names");
  }
  const Entry entry;
  if (stopped) return error(frame->api, kCancelled, "mpembed: the interpreter ends");
  Place place;
  if (on_device) {
    if (Error* failed = locate(frame, &place)) return failed;
  }
  std::string message;
  const int code = body(frame, &place, &message);
  return code == kOk ? nullptr : error(frame->api, code, message.c_str());
}

}  // namespace mpembed_xla

#endif

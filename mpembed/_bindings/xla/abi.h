// What mpembed uses of the C ABI of XLA's foreign functions, "xla/ffi/api/c_api.h", declared anew:
// jaxlib, which has that header, is not needed to build mpembed. tests/jax/test_jax_abi.py compiles
// both and compares sizes, offsets and numbers.
//
// Structs grow at their end, and `struct_size` says how far the runtime's reaches.
#ifndef MPEMBED_BINDINGS_XLA_ABI_H
#define MPEMBED_BINDINGS_XLA_ABI_H

#include <cstddef>
#include <cstdint>

namespace mpembed_xla {

constexpr int kMajorVersion = 0;  // a change of layout is another one
constexpr int kMetadata = 1;      // an extension's type
constexpr int kExecute = 3;       // a stage
constexpr int kBuffer = 1;        // the type of an argument or result
constexpr int kScalar = 3;        // the type of an attribute
enum DataType { kS32 = 4, kS64 = 5, kF32 = 11 };
enum Code {
  kOk = 0,
  kCancelled = 1,
  kInvalidArgument = 3,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kUnimplemented = 12,
  kInternal = 13,
};

struct Extension {
  size_t struct_size;
  int type;
  Extension* next;
};

struct Version {
  size_t struct_size;
  Extension* extensions;
  int major;
  int minor;
};

struct Error;  // the runtime's

struct ErrorArguments {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  int code;
};

struct Context;  // the runtime's, of a call

struct StreamArguments {
  size_t struct_size;
  Extension* extensions;
  Context* context;
  void* stream;  // a cudaStream_t, which get_stream writes
};

struct DeviceArguments {
  size_t struct_size;
  Extension* extensions;
  Context* context;
  int32_t device;  // CUDA's number, which get_device writes
};

struct Api {  // its functions up to the last that is used
  size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorArguments*);
  const void* before_get_stream[3];  // not used
  Error* (*get_stream)(StreamArguments*);
  const void* before_get_device[12];  // not used
  Error* (*get_device)(DeviceArguments*);
};

struct Buffer {
  size_t struct_size;
  Extension* extensions;
  int type;
  void* data;
  int64_t rank;
  int64_t* dims;
};

struct Values {  // arguments, or results
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int* types;
  void** values;
};

struct Text {
  const char* begin;
  size_t size;
};

struct Scalar {
  int type;
  void* value;
};

struct Attributes {  // what was known as a program was compiled
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int* types;
  Text** names;
  void** values;
};

struct CallFrame {  // its first fields
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  Context* context;
  int stage;
  Values arguments;
  Values results;
  Attributes attributes;
};

struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

}  // namespace mpembed_xla

#endif

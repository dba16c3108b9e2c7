// A checkpoint's file: 8 bytes of length, a JSON header, then the arrays; and its manifest.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "mpembed/checkpoint.h"
#include "step/json.h"

namespace mpembed::checkpoint {

// What is wrong with a file; its name is added later.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What an array holds that kernels trust.
enum class Holds { kOther, kTableRows, kTags, kCounts, kCounters, kCacheRows, kStats };

struct Array {
  std::string type;  // "U8", "F32", ...
  std::vector<int64_t> shape;
  int64_t begin = 0, bytes = 0;  // in the file
  uint32_t crc = 0;
  bool has_crc = false, expected = false;  // by the manifest
  Holds holds = Holds::kOther;
  size_t owner = 0;  // the table or group
};

// The file with what its header says of the arrays. Throws Error and bad_alloc.
class File {
 public:
  File() = default;
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void open(const char* path);
  const std::string& path() const { return path_; }
  // The text of the manifest, whose checksum is right.
  const std::string& manifest() const { return manifest_; }

  Array* find(const std::string& name);
  const Array* find(const std::string& name) const;
  const std::map<std::string, Array>& arrays() const { return arrays_; }
  // Reads an array of just so many bytes and compares its checksum.
  void read(const std::string& name, void* to, int64_t bytes) const;

 private:
  void read_at(int64_t begin, void* to, int64_t bytes, const std::string& what) const;
  void read_header(int64_t size);
  void check_places(int64_t begin, int64_t size) const;
  void read_metadata(const json::Value& metadata);

  std::string path_, manifest_;
  std::map<std::string, Array> arrays_;
  int file_ = -1;
};

struct Table {
  mpe_checkpoint_table fields{};
  std::string name;
  int32_t optimizer = -1, decay = 0;  // kinds; -1: frozen
  bool host = false;                  // in the host's memory, beside a device
};

struct Group {
  mpe_checkpoint_group fields{};
  std::string label;
  std::vector<int32_t> tables;
  std::vector<int64_t> ends;  // of each table, in rows of the group
  int32_t optimizer = -1;     // as in a table
  bool cached = false;
  std::vector<uint64_t> tags;  // of the cache, once they were read and checked

  std::string name_of(const char* array) const { return "cache." + label + "." + array; }
};

struct Manifest {
  mpe_checkpoint_info info{};
  std::vector<Table> tables;
  std::vector<Group> groups;
};

// Reads the manifest and holds it against the arrays that the file has.
Manifest read_manifest(File& file);

// Refuses values of an array that training never leaves, and kernels would trust. A cache's rows
// are held against its tags, which are read of the file where nobody has done so before.
void check_values(const File& file, Manifest* manifest, const std::string& name, const Array& array,
                  const void* values);

}  // namespace mpembed::checkpoint

#include "step/checkpoint_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "step/crc32.h"

namespace mpembed::checkpoint {
namespace {

constexpr int64_t kMaxHeader = 100'000'000;   // safetensors' own limit
constexpr int64_t kPiece = int64_t{1} << 20;  // read at once

// Bytes of an element, 0 for an unknown type.
int64_t element_bytes(const std::string& type) {
  for (const char* known :
       {"U8", "U16", "U32", "U64", "I8", "I16", "I32", "I64", "F16", "F32", "F64"}) {
    if (type == known) return std::atoi(known + 1) / 8;
  }
  return 0;
}

// The product of an array's extents and its element's bytes, -1 if it does not fit.
int64_t array_bytes(const Array& array) {
  int64_t bytes = element_bytes(array.type);
  if (bytes == 0) return -1;
  for (const int64_t extent : array.shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, extent, &bytes)) return -1;
  }
  return bytes;
}

bool read_integers(const json::Value* value, std::vector<int64_t>* out) {
  if (value == nullptr || value->type != json::Type::kArray) return false;
  for (const json::Value& item : value->items) {
    if (!item.get(&out->emplace_back())) return false;
  }
  return true;
}

// An array of the header; `start` is where the arrays begin in a file of this size.
bool read_array(const json::Value& value, int64_t start, int64_t size, Array* out) {
  constexpr size_t kFields = 3;  // these and no other
  const json::Value* type = value.find("dtype");
  std::vector<int64_t> offsets;
  if (value.items.size() != kFields) return false;
  if (type == nullptr || type->type != json::Type::kString) return false;
  if (!read_integers(value.find("shape"), &out->shape)) return false;
  if (!read_integers(value.find("data_offsets"), &offsets) || offsets.size() != 2) return false;
  if (offsets[0] < 0 || offsets[1] < offsets[0] || offsets[1] > size - start) return false;
  out->type = type->text;
  out->begin = start + offsets[0];
  out->bytes = offsets[1] - offsets[0];
  return array_bytes(*out) == out->bytes;
}

}  // namespace

File::~File() {
  if (file_ >= 0) ::close(file_);
}

void File::open(const char* path) {
  path_ = path;
  file_ = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status;
  if (file_ < 0 || ::fstat(file_, &status) != 0) throw Error(std::strerror(errno));
  if (!S_ISREG(status.st_mode)) throw Error("is not a regular file");
  read_header(static_cast<int64_t>(status.st_size));
}

void File::read_at(int64_t begin, void* to, int64_t bytes, const std::string& what) const {
  char* p = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = ::pread(file_, p, static_cast<size_t>(bytes), static_cast<off_t>(begin));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(what + " cannot be read: " + std::strerror(errno));
    if (got == 0) throw Error(what + " is cut short");
    p += got, begin += got, bytes -= got;
  }
}

void File::read_header(int64_t size) {
  uint64_t length = 0;
  if (size < 8) throw Error("is not an mpembed checkpoint (it is too short)");
  read_at(0, &length, 8, "its header");
  if (length > static_cast<uint64_t>(std::min(kMaxHeader, size - 8))) {
    throw Error("is damaged or not a checkpoint (the length of its header)");
  }
  std::string text(static_cast<size_t>(length), '\0');
  read_at(8, text.data(), static_cast<int64_t>(length), "its header");
  json::Value header;
  if (text.empty() || text[0] != '{' || !json::parse(text, &header)) {
    throw Error("is damaged or not a checkpoint (its header is not valid JSON)");
  }
  for (json::Value& item : header.items) {
    if (item.key == "__metadata__") {
      read_metadata(item);
    } else if (!read_array(item, 8 + static_cast<int64_t>(length), size, &arrays_[item.key])) {
      throw Error(item.key + ": its description is damaged");
    }
  }
  check_places(8 + static_cast<int64_t>(length), size);
  if (manifest_.empty()) throw Error("is not an mpembed checkpoint (it has no manifest)");
}

// Refuses holes, arrays that overlap, and what no array says it holds.
void File::check_places(int64_t begin, int64_t size) const {
  std::vector<std::pair<int64_t, int64_t>> places;
  places.reserve(arrays_.size());
  for (const auto& [name, array] : arrays_) places.emplace_back(array.begin, array.bytes);
  std::sort(places.begin(), places.end());
  for (const auto& [at, bytes] : places) {
    if (at != begin) throw Error("is damaged: its arrays overlap, or do not follow each other");
    begin += bytes;
  }
  if (begin != size) throw Error("is damaged: its arrays do not fill it");
}

void File::read_metadata(const json::Value& metadata) {
  const auto is_text = [](const json::Value& item) { return item.type == json::Type::kString; };
  if (metadata.type != json::Type::kObject ||
      !std::all_of(metadata.items.begin(), metadata.items.end(), is_text)) {
    throw Error("is damaged: its metadata is not texts by name");
  }
  const json::Value* found = metadata.find("mpembed");
  if (found == nullptr) return;
  const std::string& text = found->text;
  uint32_t crc = 0;
  const size_t digits = 8;  // then a space
  const char* end = text.data() + std::min(digits, text.size());
  const std::from_chars_result read = std::from_chars(text.data(), end, crc, 16);
  if (text.size() <= digits || text[digits] != ' ' || read.ec != std::errc() || read.ptr != end ||
      crc32(0, text.data() + digits + 1, text.size() - digits - 1) != crc) {
    throw Error("its manifest is damaged (checksum)");
  }
  manifest_ = text.substr(digits + 1);
}

Array* File::find(const std::string& name) {
  const auto found = arrays_.find(name);
  return found == arrays_.end() ? nullptr : &found->second;
}

const Array* File::find(const std::string& name) const {
  return const_cast<File*>(this)->find(name);
}

void File::read(const std::string& name, void* to, int64_t bytes) const {
  const Array* array = find(name);
  if (array == nullptr) throw Error(name + " is missing");
  if (array->bytes != bytes) {
    throw Error(name + " has " + std::to_string(array->bytes) + " bytes, expected " +
                std::to_string(bytes));
  }
  uint32_t crc = 0;
  for (int64_t at = 0; at < bytes; at += kPiece) {
    char* piece = static_cast<char*>(to) + at;
    const int64_t size = std::min(kPiece, bytes - at);
    read_at(array->begin + at, piece, size, name);
    crc = crc32(crc, piece, static_cast<size_t>(size));
  }
  if (crc != array->crc) throw Error(name + " is damaged (checksum)");
}

}  // namespace mpembed::checkpoint

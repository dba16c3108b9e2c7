// Any bytes as a checkpoint: an error, or a file that can be read. The mutator also changes the
// manifest and corrects its checksum, so that the reader goes on.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "mpembed/checkpoint.h"
#include "step/crc32.h"
#include "target.h"

namespace {

using Random = std::mt19937_64;

size_t draw(Random& random, size_t n) { return static_cast<size_t>(random() % n); }

// Changes, removes or inserts a few bytes of a text.
void damage(Random& random, std::string* text) {
  static const std::string kBytes("0123456789{}[]\",:\\-.eEutfn \x80\xFF\0", 31);
  for (size_t i = 1 + draw(random, 3); i > 0 && !text->empty(); --i) {
    const size_t at = draw(random, text->size());
    switch (draw(random, 4)) {
      case 0:
        text->erase(at, 1 + draw(random, 20));
        break;
      case 1:
        text->insert(at, 1, kBytes[draw(random, kBytes.size())]);
        break;
      case 2:
        text->insert(at, text->substr(draw(random, text->size()), draw(random, 40)));
        break;
      default:
        (*text)[at] = kBytes[draw(random, kBytes.size())];
    }
  }
}

// A manifest as JSON holds it in a string.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out.push_back('\\');
    out.push_back(c);
  }
  return out;
}
std::string unescaped(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) ++i;
    out.push_back(text[i]);
  }
  return out;
}

// The parts of a file, as far as it has them.
struct Parts {
  std::string header, arrays;
  size_t begin = 0, end = 0;  // of the manifest's text in the header, its checksum in front

  explicit Parts(const std::string& file) {
    uint64_t length = 0;
    if (file.size() >= 8) memcpy(&length, file.data(), 8);
    if (file.size() < 8 || length > file.size() - 8) return;
    header = file.substr(8, length);
    arrays = file.substr(8 + length);
    const std::string key = "\"mpembed\"";
    const size_t found = header.find(key);
    begin = found == std::string::npos ? found : header.find('"', found + key.size());
    if (begin == std::string::npos) begin = header.size();
    begin = std::min(begin + 1, header.size());
    for (end = begin; end < header.size() && header[end] != '"';) {
      end += header[end] == '\\' ? 2 : 1;
    }
    end = std::min(end, header.size());
  }

  bool has_manifest() const { return end - begin > 9; }
  std::string manifest() const { return unescaped(header.substr(begin + 9, end - begin - 9)); }
  // The header with another manifest and its right checksum, so that the reader goes on.
  std::string with_manifest(const std::string& manifest) const {
    char sum[16];
    std::snprintf(sum, sizeof sum, "%08x ", mpembed::crc32(0, manifest.data(), manifest.size()));
    return header.substr(0, begin) + sum + escaped(manifest) + header.substr(end);
  }
  std::string with_other_manifest(Random& random) const {
    std::string other = manifest();
    damage(random, &other);
    return whole(with_manifest(other), arrays);
  }
  // Other bytes in an array, whose checksum is right again; empty where there is none to change.
  std::string with_other_array(Random& random) const {
    const std::string key = "\"data_offsets\": [";
    std::vector<std::pair<size_t, size_t>> places;
    for (size_t at = header.find(key); at != std::string::npos; at = header.find(key, at + 1)) {
      char* comma = nullptr;
      const size_t first = std::strtoull(header.c_str() + at + key.size(), &comma, 10);
      const size_t last = *comma == '\0' ? 0 : std::strtoull(comma + 1, nullptr, 10);
      if (first < last && last <= arrays.size()) places.emplace_back(first, last - first);
    }
    if (places.empty()) return "";
    const std::pair<size_t, size_t> place = places[draw(random, places.size())];
    const auto sum = [&](const std::string& data) {
      return ": " + std::to_string(mpembed::crc32(0, data.data() + place.first, place.second));
    };
    std::string changed = arrays, other = manifest();
    const std::string old = sum(arrays);
    const size_t at = other.find(old);
    if (at == std::string::npos) return "";
    for (size_t i = 1 + draw(random, 4); i > 0; --i) {
      changed[place.first + draw(random, place.second)] = static_cast<char>(random());
    }
    other.replace(at, old.size(), sum(changed));
    return whole(with_manifest(other), changed);
  }
  std::string with_other_header(Random& random) const {
    std::string other = header;
    damage(random, &other);
    return whole(other, arrays);
  }
  static std::string whole(const std::string& header, const std::string& arrays) {
    const uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + arrays;
  }
};

void read_all(mpe_checkpoint* checkpoint, size_t size) {
  mpe_checkpoint_info info;
  mpe_checkpoint_describe(checkpoint, &info);
  std::vector<std::string> names{"none", "stats"};
  for (int32_t t = 0; t < info.num_tables; ++t) {
    mpe_checkpoint_table table;
    mpe_checkpoint_get_table(checkpoint, t, &table);
    FUZZ_HOLDS(table.num_rows >= 0 && table.dim > 0);
    names.push_back(std::string("table.") + table.name + ".rows");
  }
  for (int32_t g = 0; g < info.num_groups; ++g) {
    mpe_checkpoint_group group;
    mpe_checkpoint_get_group(checkpoint, g, &group);
    for (int32_t i = 0; i < group.num_tables; ++i) {
      FUZZ_HOLDS(group.tables[i] >= 0 && group.tables[i] < info.num_tables);
    }
    for (const char* name : {"tags", "meta", "rows", "counters", "sketch"}) {
      names.push_back(std::string("cache.") + group.label + "." + name);
    }
  }
  for (const std::string& name : names) {
    const int64_t bytes = mpe_checkpoint_bytes(checkpoint, name.c_str());
    FUZZ_HOLDS(bytes <= static_cast<int64_t>(size));
    if (bytes < 0) continue;
    std::vector<char> data(static_cast<size_t>(bytes));
    mpe_checkpoint_read(checkpoint, name.c_str(), data.data(), bytes);
    FUZZ_HOLDS(mpe_checkpoint_read(checkpoint, name.c_str(), data.data(), bytes + 1) != MPE_OK);
  }
}

// A file in memory with a name.
class MemoryFile {
 public:
  MemoryFile() : file_(memfd_create("input", MFD_CLOEXEC)) { FUZZ_HOLDS(file_ >= 0); }
  ~MemoryFile() { close(file_); }
  void fill(const uint8_t* data, size_t size) const {
    FUZZ_HOLDS(ftruncate(file_, 0) == 0);
    FUZZ_HOLDS(pwrite(file_, data, size, 0) == static_cast<ssize_t>(size));
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  const int file_;
};

fuzz::Count opened("opened");

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  Random random(seed);
  const size_t choice = draw(random, 8);
  const std::string file(reinterpret_cast<const char*>(data), size);
  const Parts parts(file);
  std::string other;
  if (choice < 3 && parts.has_manifest()) {
    other = parts.with_other_manifest(random);
  } else if (choice < 5 && parts.has_manifest()) {
    other = parts.with_other_array(random);
  } else if (choice < 7 && !parts.header.empty()) {
    other = parts.with_other_header(random);
  }
  if (other.empty() || other.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  memcpy(data, other.data(), other.size());
  return other.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const MemoryFile file;
  static const std::string path = file.path();
  file.fill(data, size);
  mpe_checkpoint* checkpoint = mpe_checkpoint_open(path.c_str());
  FUZZ_HOLDS(checkpoint != nullptr);
  if (mpe_checkpoint_error(checkpoint) == nullptr) {
    ++opened.value;
    read_all(checkpoint, size);
  }
  mpe_checkpoint_close(checkpoint);
  return 0;
}

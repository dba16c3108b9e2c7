// Opens damaged copies of a checkpoint and reads what they say they hold: checkpoint_driver FILE
// SCRATCH COUNT SEED. Prints how many opened; a sanitizer ends it where one does harm.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "mpembed/checkpoint.h"
#include "step/crc32.h"

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
  for (size_t i = 0; i < text.size(); ++i) out.push_back(text[i] == '\\' ? text[++i] : text[i]);
  return out;
}

struct Checkpoint {
  std::string header, arrays;
  size_t begin, end;  // of the manifest's text in the header, its checksum in front

  explicit Checkpoint(const std::string& file) {
    uint64_t length = 0;
    memcpy(&length, file.data(), 8);
    header = file.substr(8, length);
    arrays = file.substr(8 + length);
    const std::string key = "\"mpembed\"";
    begin = header.find('"', header.find(key) + key.size()) + 1;
    for (end = begin; header[end] != '"';) end += header[end] == '\\' ? 2 : 1;
  }

  // A damaged manifest with the right checksum, so that the reader goes on.
  std::string with_other_manifest(Random& random) const {
    std::string manifest = unescaped(header.substr(begin + 9, end - begin - 9));
    damage(random, &manifest);
    char sum[16];
    std::snprintf(sum, sizeof sum, "%08x ", mpembed::crc32(0, manifest.data(), manifest.size()));
    return whole(header.substr(0, begin) + sum + escaped(manifest) + header.substr(end));
  }
  std::string with_other_header(Random& random) const {
    std::string other = header;
    damage(random, &other);
    return whole(other);
  }
  std::string whole(const std::string& with) const {
    const uint64_t length = with.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + with + arrays;
  }
};

void read_all(mpe_checkpoint* checkpoint) {
  mpe_checkpoint_info info;
  mpe_checkpoint_describe(checkpoint, &info);
  std::vector<std::string> names;
  for (int32_t t = 0; t < info.num_tables; ++t) {
    mpe_checkpoint_table table;
    mpe_checkpoint_get_table(checkpoint, t, &table);
    names.push_back(std::string("table.") + table.name + ".rows");
  }
  for (int32_t g = 0; g < info.num_groups; ++g) {
    mpe_checkpoint_group group;
    mpe_checkpoint_get_group(checkpoint, g, &group);
    for (const char* name : {"tags", "meta", "rows", "counters", "sketch"}) {
      names.push_back(std::string("cache.") + group.label + "." + name);
    }
  }
  for (const std::string& name : names) {
    const int64_t bytes = mpe_checkpoint_bytes(checkpoint, name.c_str());
    if (bytes < 0) continue;
    std::vector<char> data(static_cast<size_t>(bytes));
    mpe_checkpoint_read(checkpoint, name.c_str(), data.data(), bytes);
  }
}

}  // namespace

int main(int, char** argv) {
  std::ifstream file(argv[1], std::ios::binary);
  const std::string content(std::istreambuf_iterator<char>(file), {});
  const Checkpoint original(content);
  Random random(std::strtoull(argv[4], nullptr, 10));
  int opened = 0;
  for (int i = std::atoi(argv[3]); i > 0; --i) {
    std::string other;
    switch (draw(random, 4)) {
      case 0:
        other = original.with_other_header(random);
        break;
      case 1:
        other = content.substr(0, draw(random, content.size()));
        break;
      default:
        other = original.with_other_manifest(random);
    }
    std::ofstream(argv[2], std::ios::binary) << other;
    mpe_checkpoint* checkpoint = mpe_checkpoint_open(argv[2]);
    if (mpe_checkpoint_error(checkpoint) == nullptr) {
      ++opened;
      read_all(checkpoint);
    }
    mpe_checkpoint_close(checkpoint);
  }
  std::printf("%d\n", opened);
  return 0;
}

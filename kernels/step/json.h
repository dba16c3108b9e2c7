// A strict reader of JSON (RFC 8259) for what a checkpoint's header holds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mpembed::json {

constexpr int kMaxDepth = 32;
constexpr int64_t kMaxValues = int64_t{1} << 22;

enum class Type { kNull, kFalse, kTrue, kNumber, kString, kArray, kObject };

struct Value {
  Type type = Type::kNull;
  std::string key;           // of an object's member
  std::string text;          // of a string, in UTF-8; of a number, as it is written
  std::vector<Value> items;  // of an array, in order; of an object, by key

  // An object's member, or NULL.
  const Value* find(std::string_view name) const;
  // Whether this is a whole number that fits; fractions and exponents do not.
  bool get(int64_t* out) const;
  bool get(uint64_t* out) const;
};

// Reads one value and nothing behind it; false for anything else. A key that comes twice, a lone
// half of a surrogate pair, deeper nesting and more values than above are refused. Throws
// bad_alloc.
bool parse(std::string_view text, Value* out);

}  // namespace mpembed::json

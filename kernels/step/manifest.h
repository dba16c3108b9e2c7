// How parts of a manifest are read: each is of its type and in its range, or the file is refused.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <string>
#include <vector>

#include "step/checkpoint_file.h"

namespace mpembed::checkpoint {

#define MPE_NAME2(id, name) #name,
#define MPE_NAME3(id, name, type) #name,
constexpr const char* kOptimizers[] = {MPE_OPTIMIZERS(MPE_NAME3)};
constexpr const char* kDecays[] = {MPE_WEIGHT_DECAYS(MPE_NAME2)};
constexpr const char* kPolicies[] = {MPE_POLICIES(MPE_NAME3)};
constexpr const char* kPoolings[] = {MPE_POOLINGS(MPE_NAME2)};
constexpr const char* kRoundings[] = {MPE_ROUNDINGS(MPE_NAME2)};
constexpr const char* kFormats[] = {MPE_FORMATS(MPE_NAME3)};
#undef MPE_NAME2
#undef MPE_NAME3

[[noreturn]] inline void refuse(const std::string& what) {
  throw Error("its manifest is not valid: " + what);
}

// Refuses an object that has not just these fields, which are in order.
template <size_t n>
void check_fields(const json::Value& object, const char* what, const char* const (&fields)[n]) {
  const auto named = [](const json::Value& item, const char* name) { return item.key == name; };
  if (object.type != json::Type::kObject ||
      !std::equal(object.items.begin(), object.items.end(), fields, fields + n, named)) {
    refuse(std::string(what) + " has not just the fields that it should have");
  }
}

inline const json::Value& member(const json::Value& object, const char* name) {
  const json::Value* found = object.find(name);
  if (found == nullptr) refuse(std::string("it has no ") + name);
  return *found;
}

inline bool is_null(const json::Value& object, const char* name) {
  return member(object, name).type == json::Type::kNull;
}

inline const std::string& text(const json::Value& value, const char* name) {
  if (value.type != json::Type::kString) refuse(std::string(name) + " is not a text");
  return value.text;
}

inline int64_t number(const json::Value& value, const char* name, int64_t low, int64_t high) {
  int64_t found = 0;
  if (!value.get(&found) || found < low || found > high) {
    refuse(std::string(name) + " is not a whole number in its range");
  }
  return found;
}

// A whole number in this range, or another where it is null.
inline int64_t number_or(int64_t other, const json::Value& object, const char* name, int64_t low,
                         int64_t high) {
  return is_null(object, name) ? other : number(member(object, name), name, low, high);
}

inline bool truth(const json::Value& object, const char* name) {
  const json::Type type = member(object, name).type;
  if (type != json::Type::kTrue && type != json::Type::kFalse) {
    refuse(std::string(name) + " is not a truth value");
  }
  return type == json::Type::kTrue;
}

// The place of a text among those that are known.
template <size_t n>
int32_t choice(const json::Value& value, const char* name, const char* const (&names)[n]) {
  const std::string& found = text(value, name);
  for (size_t i = 0; i < n; ++i) {
    if (found == names[i]) return static_cast<int32_t>(i);
  }
  refuse(std::string(name) + " is '" + found + "', which this library does not know");
}

inline const std::vector<json::Value>& list(const json::Value& object, const char* name) {
  const json::Value& found = member(object, name);
  if (found.type != json::Type::kArray) refuse(std::string(name) + " is not a list");
  return found.items;
}

// Refuses an array that is not of this type and shape; extents of -1 are free.
inline Array& expect(File& file, const std::string& name, const char* type,
                     std::initializer_list<int64_t> shape, Holds holds = Holds::kOther,
                     size_t owner = 0) {
  Array* array = file.find(name);
  if (array == nullptr) refuse(name + " is missing");
  const auto fits = [](int64_t has, int64_t wanted) { return wanted < 0 || has == wanted; };
  if (array->type != type ||
      !std::equal(array->shape.begin(), array->shape.end(), shape.begin(), shape.end(), fits)) {
    refuse(name + " has another type or shape");
  }
  array->expected = true;
  array->holds = holds;
  array->owner = owner;
  return *array;
}

// The tables of a manifest, with the arrays of their rows and states.
std::vector<Table> read_tables(File& file, const json::Value& root);

// The groups of these tables, with the arrays of their caches.
std::vector<Group> read_groups(File& file, const json::Value& root,
                               const std::vector<Table>& tables);

}  // namespace mpembed::checkpoint

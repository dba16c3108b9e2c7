#include "step/json.h"

#include <algorithm>
#include <charconv>
#include <cstring>

namespace mpembed::json {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : at_(text.data()), end_(at_ + text.size()) {}

  bool document(Value* out) {
    if (!value(out, 0)) return false;
    skip_space();
    return at_ == end_;
  }

 private:
  void skip_space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
  }
  bool next_is(char c) {
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }
  bool word(const char* text, Type type, Value* out) {
    const size_t size = std::strlen(text);
    if (static_cast<size_t>(end_ - at_) < size || std::memcmp(at_, text, size) != 0) return false;
    at_ += size;
    out->type = type;
    return true;
  }

  bool value(Value* out, int depth) {
    if (++values_ > kMaxValues || depth > kMaxDepth) return false;
    skip_space();
    if (at_ == end_) return false;
    switch (*at_) {
      case '{':
        return members(out, depth);
      case '[':
        return elements(out, depth);
      case '"':
        out->type = Type::kString;
        return string(&out->text);
      case 't':
        return word("true", Type::kTrue, out);
      case 'f':
        return word("false", Type::kFalse, out);
      case 'n':
        return word("null", Type::kNull, out);
      default:
        return number(out);
    }
  }

  bool elements(Value* out, int depth) {
    out->type = Type::kArray;
    ++at_;
    skip_space();
    if (next_is(']')) return true;
    do {
      if (!value(&out->items.emplace_back(), depth + 1)) return false;
      skip_space();
    } while (next_is(','));
    return next_is(']');
  }

  bool members(Value* out, int depth) {
    out->type = Type::kObject;
    ++at_;
    skip_space();
    if (next_is('}')) return true;
    do {
      Value& member = out->items.emplace_back();
      skip_space();
      if (!string(&member.key)) return false;
      skip_space();
      if (!next_is(':') || !value(&member, depth + 1)) return false;
      skip_space();
    } while (next_is(','));
    const auto by_key = [](const Value& a, const Value& b) { return a.key < b.key; };
    const auto same_key = [](const Value& a, const Value& b) { return a.key == b.key; };
    std::sort(out->items.begin(), out->items.end(), by_key);
    return next_is('}') &&
           std::adjacent_find(out->items.begin(), out->items.end(), same_key) == out->items.end();
  }

  bool digits() {
    const char* begin = at_;
    while (at_ < end_ && *at_ >= '0' && *at_ <= '9') ++at_;
    return at_ > begin;
  }

  bool number(Value* out) {
    const char* begin = at_;
    next_is('-');
    if (!next_is('0') && !digits()) return false;
    if (next_is('.') && !digits()) return false;
    if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
      ++at_;
      if (!next_is('+')) next_is('-');
      if (!digits()) return false;
    }
    out->type = Type::kNumber;
    out->text.assign(begin, at_);
    return true;
  }

  bool string(std::string* out) {
    if (!next_is('"')) return false;
    while (at_ < end_) {
      const char c = *at_++;
      if (c == '"') return true;
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c != '\\') {
        out->push_back(c);
      } else if (!escape(out)) {
        return false;
      }
    }
    return false;
  }

  bool escape(std::string* out) {
    if (at_ == end_) return false;
    const char c = *at_++;
    if (c == 'u') return unicode(out);
    static constexpr char kNames[] = "\"\\/bfnrt", kMeanings[] = "\"\\/\b\f\n\r\t";
    const char* name = c == 0 ? nullptr : std::strchr(kNames, c);
    if (name == nullptr) return false;
    out->push_back(kMeanings[name - kNames]);
    return true;
  }

  bool four_digits(uint32_t* out) {
    if (end_ - at_ < 4) return false;
    const std::from_chars_result read = std::from_chars(at_, at_ + 4, *out, 16);
    if (read.ec != std::errc() || read.ptr != at_ + 4) return false;
    at_ += 4;
    return true;
  }

  bool unicode(std::string* out) {
    uint32_t code = 0, low = 0;
    if (!four_digits(&code) || code >> 10 == 0xDC00 >> 10) return false;
    if (code >> 10 == 0xD800 >> 10) {
      if (!next_is('\\') || !next_is('u') || !four_digits(&low) || low >> 10 != 0xDC00 >> 10) {
        return false;
      }
      code = 0x10000 + ((code & 0x3FF) << 10) + (low & 0x3FF);
    }
    append_utf8(code, out);
    return true;
  }

  static void append_utf8(uint32_t code, std::string* out) {
    const int more = code < 0x80 ? 0 : (code < 0x800 ? 1 : (code < 0x10000 ? 2 : 3));
    static constexpr uint32_t kFirst[] = {0, 0xC0, 0xE0, 0xF0};
    out->push_back(static_cast<char>(kFirst[more] | code >> 6 * more));
    for (int i = more - 1; i >= 0; --i) {
      out->push_back(static_cast<char>(0x80 | (code >> 6 * i & 0x3F)));
    }
  }

  const char* at_;
  const char* const end_;
  int64_t values_ = 0;
};

template <class Integer>
bool whole(const Value& value, Integer* out) {
  if (value.type != Type::kNumber) return false;
  const char* end = value.text.data() + value.text.size();
  const std::from_chars_result read = std::from_chars(value.text.data(), end, *out);
  return read.ec == std::errc() && read.ptr == end;
}

}  // namespace

const Value* Value::find(std::string_view name) const {
  if (type != Type::kObject) return nullptr;
  const auto before = [](const Value& item, std::string_view key) { return item.key < key; };
  const auto found = std::lower_bound(items.begin(), items.end(), name, before);
  return found != items.end() && found->key == name ? &*found : nullptr;
}

bool Value::get(int64_t* out) const { return whole(*this, out); }
bool Value::get(uint64_t* out) const { return whole(*this, out); }

bool parse(std::string_view text, Value* out) { return Parser(text).document(out); }

}  // namespace mpembed::json

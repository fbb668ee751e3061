// Splits PTX text into words, punctuation and strings.
#pragma once

#include <string_view>

namespace emulator::ptx {

struct Token {
  enum class Kind { kWord, kPunctuation, kString, kEnd };
  Kind kind = Kind::kEnd;
  std::string_view text;
  int line = 0;

  bool is(std::string_view wanted) const { return kind != Kind::kString && text == wanted; }
};

// Words are opcodes with their modifiers ("shared::cta" included), directives, names and numbers.
class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) { advance(); }

  const Token& peek() const { return token_; }
  Token next() {
    const Token token = token_;
    advance();
    return token;
  }
  bool accept(std::string_view wanted) {
    if (!token_.is(wanted)) return false;
    advance();
    return true;
  }
  // Throws Fault when something else comes.
  void expect(std::string_view wanted);
  void skip_past(std::string_view wanted);

 private:
  void advance();
  void skip_blanks();
  bool is_word_at(size_t place) const;

  std::string_view text_;
  size_t place_ = 0;
  int line_ = 1;
  Token token_;
};

}  // namespace emulator::ptx

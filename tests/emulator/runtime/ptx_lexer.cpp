// Splits PTX text into words, punctuation and strings.
#include "runtime/ptx_lexer.h"

#include <cctype>
#include <string>

#include "runtime/fault.h"

namespace emulator::ptx {

void Lexer::expect(std::string_view wanted) {
  if (accept(wanted)) return;
  throw Fault(FaultKind::kUnsupported, "unsupported PTX: line " + std::to_string(token_.line) +
                                           ": '" + std::string(wanted) + "' expected, not '" +
                                           std::string(token_.text) + "'");
}

void Lexer::skip_past(std::string_view wanted) {
  while (token_.kind != Token::Kind::kEnd && !token_.is(wanted)) advance();
  advance();
}

bool Lexer::is_word_at(size_t place) const {
  if (place >= text_.size()) return false;
  const char c = text_[place];
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '$' || c == '%' ||
         c == '.';
}

void Lexer::skip_blanks() {
  while (place_ < text_.size()) {
    if (text_[place_] == '\n') ++line_;
    if (std::isspace(static_cast<unsigned char>(text_[place_])) != 0) {
      ++place_;
    } else if (text_.substr(place_, 2) == "//") {
      place_ = std::min(text_.find('\n', place_), text_.size());
    } else if (text_.substr(place_, 2) == "/*") {
      const size_t end = std::min(text_.find("*/", place_), text_.size() - 2) + 2;
      for (; place_ < end; ++place_) line_ += text_[place_] == '\n';
    } else {
      return;
    }
  }
}

void Lexer::advance() {
  skip_blanks();
  token_.line = line_;
  const size_t begin = place_;
  if (begin >= text_.size()) {
    token_.kind = Token::Kind::kEnd;
    token_.text = {};
    return;
  }
  if (text_[begin] == '"') {
    place_ = std::min(text_.find('"', begin + 1), text_.size() - 1) + 1;
    token_.kind = Token::Kind::kString;
    token_.text = text_.substr(begin + 1, place_ - begin - 2);
    return;
  }
  token_.kind = is_word_at(begin) ? Token::Kind::kWord : Token::Kind::kPunctuation;
  if (token_.kind == Token::Kind::kPunctuation) {
    ++place_;
  } else {
    for (;;) {
      while (is_word_at(place_)) ++place_;
      if (text_.substr(place_, 2) != "::" || !is_word_at(place_ + 2)) break;
      place_ += 2;  // "shared::cta"
    }
  }
  token_.text = text_.substr(begin, place_ - begin);
}

}  // namespace emulator::ptx

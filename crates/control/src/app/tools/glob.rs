//! Names that match a pattern: `*`, `?`, `**` over folders, `[a-z]`, `{a,b}`. Takes time in proportion to pattern times name.

use warren_types::Error;

const MAX_PATTERN_BYTES: usize = 256;
/// What the alternatives of a pattern may come to.
const MAX_ALTERNATIVES: usize = 64;

#[derive(Debug)]
pub(super) struct Glob {
    alternatives: Vec<Vec<Token>>,
    /// It is about whole paths, not about last names.
    of_path: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Is(char),
    /// `?`
    Any,
    /// `*`: any characters but a slash.
    Some,
    /// `**`: any characters.
    Deep,
    /// `[…]`; the flag turns it around.
    Of(Vec<(char, char)>, bool),
}

impl Glob {
    pub(super) fn parse(pattern: &str) -> Result<Self, Error> {
        if pattern.is_empty() || pattern.len() > MAX_PATTERN_BYTES {
            return Err(Error::invalid(format!("glob must have 1 to {MAX_PATTERN_BYTES} bytes")));
        }
        let mut alternatives = Vec::new();
        expand(pattern.chars().collect(), &mut alternatives)?;
        let alternatives = alternatives.iter().map(|chars| tokens(chars)).collect();
        Ok(Self { alternatives, of_path: pattern.contains('/') })
    }

    /// Whether a path, relative to where the search began, matches.
    pub(super) fn matches(&self, path: &str) -> bool {
        let text = if self.of_path { path } else { path.rsplit('/').next().unwrap_or(path) };
        let chars: Vec<char> = text.chars().collect();
        self.alternatives.iter().any(|tokens| matches(tokens, &chars))
    }
}

/// Writes `{a,b}` out.
fn expand(pattern: Vec<char>, into: &mut Vec<Vec<char>>) -> Result<(), Error> {
    let mut waiting = vec![pattern];
    while let Some(pattern) = waiting.pop() {
        if waiting.len() + into.len() >= MAX_ALTERNATIVES {
            return Err(Error::invalid(format!("glob has more than {MAX_ALTERNATIVES} alternatives")));
        }
        let Some((start, end, commas)) = braces(&pattern) else {
            into.push(pattern);
            continue;
        };
        let mut edges = vec![start];
        edges.extend(commas);
        edges.push(end);
        for pair in edges.windows(2) {
            let mut one = pattern[..start].to_vec();
            one.extend_from_slice(&pattern[pair[0] + 1..pair[1]]);
            one.extend_from_slice(&pattern[end + 1..]);
            waiting.push(one);
        }
    }
    Ok(())
}

/// The first pair of braces with a comma in it: where it starts and ends, and its own commas.
fn braces(pattern: &[char]) -> Option<(usize, usize, Vec<usize>)> {
    let start = pattern.iter().position(|character| *character == '{')?;
    let (mut depth, mut commas) = (0_usize, Vec::new());
    for (at, character) in pattern.iter().enumerate().skip(start) {
        match character {
            '{' => depth += 1,
            ',' if depth == 1 => commas.push(at),
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return (!commas.is_empty()).then_some((start, at, commas));
                }
            }
            _ => {}
        }
    }
    None
}

fn tokens(pattern: &[char]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(character) = pattern.get(at) {
        at += 1;
        match character {
            '?' => tokens.push(Token::Any),
            '*' if pattern.get(at) == Some(&'*') => {
                at += 1;
                // `**/` also stands for no folder at all: the slash is part of it.
                if pattern.get(at) == Some(&'/') {
                    at += 1;
                }
                tokens.push(Token::Deep);
            }
            '*' => tokens.push(Token::Some),
            '[' => match class(&pattern[at..]) {
                Some((token, taken)) => {
                    tokens.push(token);
                    at += taken;
                }
                None => tokens.push(Token::Is('[')),
            },
            '\\' => {
                tokens.push(Token::Is(pattern.get(at).copied().unwrap_or('\\')));
                at += 1;
            }
            other => tokens.push(Token::Is(*other)),
        }
    }
    tokens
}

/// What follows a `[`, and how many characters it has.
fn class(rest: &[char]) -> Option<(Token, usize)> {
    let negated = matches!(rest.first(), Some('!' | '^'));
    let from = usize::from(negated);
    // A bracket right at the start stands for itself.
    let end = from + 1 + rest.get(from + 1..)?.iter().position(|character| *character == ']')?;
    let (mut ranges, mut at) = (Vec::new(), from);
    while at < end {
        if at + 2 < end && rest[at + 1] == '-' {
            ranges.push((rest[at], rest[at + 2]));
            at += 3;
        } else {
            ranges.push((rest[at], rest[at]));
            at += 1;
        }
    }
    Some((Token::Of(ranges, negated), end + 1))
}

/// Goes through the text once and keeps every place of the pattern that may have been reached.
fn matches(tokens: &[Token], text: &[char]) -> bool {
    let mut reached = vec![false; tokens.len() + 1];
    reached[0] = true;
    skip_empty(tokens, &mut reached);
    for character in text {
        let mut next = vec![false; tokens.len() + 1];
        for (at, token) in tokens.iter().enumerate().filter(|(at, _)| reached[*at]) {
            match token {
                Token::Is(wanted) => next[at + 1] |= wanted == character,
                Token::Any => next[at + 1] |= *character != '/',
                Token::Some => next[at] |= *character != '/',
                Token::Deep => next[at] = true,
                Token::Of(ranges, negated) => {
                    let inside = ranges.iter().any(|(first, last)| (first..=last).contains(&character));
                    next[at + 1] |= inside != *negated && *character != '/';
                }
            }
        }
        skip_empty(tokens, &mut next);
        reached = next;
    }
    reached[tokens.len()]
}

/// Stars may stand for nothing.
fn skip_empty(tokens: &[Token], reached: &mut [bool]) {
    for (at, token) in tokens.iter().enumerate() {
        if reached[at] && matches!(token, Token::Some | Token::Deep) {
            reached[at + 1] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_they_do_elsewhere() {
        for (pattern, path, expected) in [
            ("*.rs", "src/main.rs", true),
            ("*.rs", "src/main.rsx", false),
            ("src/*.rs", "src/main.rs", true),
            ("src/*.rs", "src/a/main.rs", false),
            ("src/**/*.rs", "src/a/b/main.rs", true),
            ("src/**/*.rs", "src/main.rs", true),
            ("**/test_*.py", "test_a.py", true),
            ("*.{ts,tsx}", "a/b.tsx", true),
            ("*.{ts,{js,mjs}}", "a.mjs", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]x", "]x", true),
            ("a[", "a[", true),
            ("\\*", "*", true),
            ("{a}", "{a}", true),
            ("é*", "état", true),
        ] {
            assert_eq!(Glob::parse(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn patterns_that_mean_harm_take_no_time() {
        let glob = Glob::parse(&"*a".repeat(120)).unwrap();
        assert!(!glob.matches(&format!("{}b", "a".repeat(4000))));
        assert!(Glob::parse(&"{a,b}".repeat(20)).is_err());
        assert!(Glob::parse(&"{".repeat(200)).is_ok());
        assert!(Glob::parse("").is_err());
    }
}

# Sourced by pod.sh: errors, notes, and words that pass through a shell unharmed. POSIX sh.

fail() {
  echo "error: $*" >&2
  exit 2
}

note() {
  [ -n "$dry_run" ] || echo "pod: $*" >&2
}

# words WORD ...: the words as one line of shell, each quoted where it has to be.
words() {
  line=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:,@%+=-]*)
        # The x keeps newlines at the end, which $(...) would drop.
        word=$(printf '%sx' "$word" | sed "s/'/'\\\\''/g")
        word="'${word%x}'"
        ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s' "$line"
}

# call COMMAND ...: runs it, or prints it where --dry-run was given.
call() {
  if [ -n "$dry_run" ]; then
    printf '%s\n' "$(words "$@")"
  else
    "$@"
  fi
}

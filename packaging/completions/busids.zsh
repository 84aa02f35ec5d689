# Offers busids with the names of their devices; $1 selects them, see busids.awk.  Runs in zsh.
_usbipd_busids() {
  local -a line_words socket busids
  local index
  line_words=(${(z)LBUFFER})  # not $words: it lacks what precedes the command
  index=$line_words[(I)--socket]
  if (( index )); then
    socket=(--socket "${(Q)line_words[index + 1]}")
  elif index=$line_words[(I)--socket=*]; (( index )); then
    socket=("${(Q)line_words[index]}")
  fi
  busids=(${(f)"$(
    command usbipd list --json --timeout 2 $socket 2>/dev/null </dev/null |
      awk -v wanted=$1 @BUSIDS_AWK@ | tr '\t' ':'
  )"})
  _describe -t busids busid busids
}

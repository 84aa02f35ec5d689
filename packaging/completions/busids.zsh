# Offers busids, with what their devices are called; $1 says which, see busids.awk.  Runs in zsh.
_usbipd_busids() {
  local -a line_words socket busids
  local index
  line_words=(${(z)LBUFFER})  # not $words: what stands before the command is not there any more
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

#!/bin/sh
# Makes the microphone input of the browser test: about 10 s of speech with pauses, 48 kHz mono WAV.
# Usage: speech.sh OUT.wav    (needs espeak-ng and sox)
#
# Chromium plays it in a loop. Each pause is 1.2 s, longer than the VAD's 500 ms, so every phrase is a turn of its own. The
# simulator answers with the phrase itself: the answer begins 0.5 s into the pause and lasts longer than the 0.7 s that are
# left, so the next phrase begins while it plays. That is the interruption that the test waits for.
set -eu

out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { # NUMBER TEXT
    espeak-ng -v en-us -s 165 -w "$work/said.wav" "$2"
    sox "$work/said.wav" -r 48000 -c 1 -b 16 "$work/$1.wav" gain -n -3 pad 0 1.2
}

say 1 "Good morning, I have a question about my order."
say 2 "It was two chairs and a lamp."
say 3 "Where is the lamp?"
sox "$work/1.wav" "$work/2.wav" "$work/3.wav" "$out"

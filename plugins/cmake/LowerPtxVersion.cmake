# Script: rewrites the `.version` line of a PTX FILE to VERSION, which its code must not exceed.
file(READ "${FILE}" text)
string(REGEX REPLACE "\n\\.version [0-9.]+" "\n.version ${VERSION}" text "${text}")
file(WRITE "${FILE}" "${text}")

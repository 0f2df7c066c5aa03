#!/usr/bin/env bash
# Makes an API server of Kubernetes, for tests: Debian 12's source of it, built by Debian's Go, and Debian's etcd. Needs no
# root; three minutes on two cores, once. Nothing of the machine is changed but the folder:
#   tests/kubernetes/install.sh [FOLDER]     default: ~/.cache/shardtune/kubernetes
set -euo pipefail
folder=${1:-${SHARDTUNE_KUBERNETES:-$HOME/.cache/shardtune/kubernetes}}
[ ! -x "$folder/kube-apiserver" ] || exit 0
build=$(mktemp -d)
trap 'chmod -R u+w "$build"; rm -rf "$build"' EXIT
cd "$build"

echo 'deb-src http://deb.debian.org/debian bookworm main' >sources.list
mkdir -p lists/partial
sources=(-o "Dir::Etc::sourcelist=$build/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$build/lists")
apt-get "${sources[@]}" --quiet update
apt-get "${sources[@]}" --quiet source --download-only kubernetes
apt-get --quiet download golang-1.19-src golang-1.19-go golang-github-modern-go-reflect2-dev etcd-server
for package in *.deb; do dpkg --extract "$package" debian; done
cp -r debian/usr/share/go-1.19 go
cp -rLn debian/usr/lib/go-1.19/bin debian/usr/lib/go-1.19/pkg go/

export GOROOT=$build/go GOPATH=$build/path GOCACHE=$build/cache GO111MODULE=off CGO_ENABLED=0 PATH=$build/go/bin:$PATH
root=$GOPATH/src/k8s.io/kubernetes
mkdir -p "$root"
tar --extract --gzip --file kubernetes_*.orig.tar.gz --strip-components=1 --directory "$root"
cd "$root"
# The reflect2 that comes with the source reads maps as Go did before 1.18.
rm vendor/github.com/modern-go/reflect2/*.{go,s}
cp "$build"/debian/usr/share/gocode/src/github.com/modern-go/reflect2/* vendor/github.com/modern-go/reflect2/

# What the server says of itself at /openapi/v2 is generated from comments; its own Makefile wants git and rsync for it.
nice go build -o "$build/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
packages=$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg cmd plugin staging/src | xargs --max-args=1 dirname | sort -u |
  grep -v '/testdata\|sample-\|code-generator\|/fuzzer' |
  sed -e 's#^staging/src/#k8s.io/kubernetes/vendor/#' -e '/^k8s.io/!s#^#k8s.io/kubernetes/#' | paste -sd,)
nice "$build/openapi-gen" --output-file-base zz_generated.openapi --go-header-file hack/boilerplate/boilerplate.generatego.txt \
  --report-filename "$build/report" --output-package k8s.io/kubernetes/pkg/generated/openapi \
  --input-dirs "$packages" --output-base "$GOPATH/src"
nice go build -o "$build/kube-apiserver" ./cmd/kube-apiserver

mkdir -p "$folder"
cp "$build/debian/usr/bin/etcd" "$folder/etcd"
mv "$build/kube-apiserver" "$folder/kube-apiserver" # last: with it, all is there

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// writeCredentials makes what the parts of the cluster know each other by: a certificate authority
// (ca.crt), the API server's certificate (apiserver.crt, apiserver.key), the key of service account
// tokens (sa.key), and one administrator's token (tokens.csv, in admin.conf).
func (c *cluster) writeCredentials() error {
	now := time.Now()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cluster"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(nodeIP), net.ParseIP(apiServiceIP)},
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if err := c.writeCertificate("ca.crt", authority, authority, authorityKey, authorityKey); err != nil {
		return err
	}
	for _, name := range []string{"apiserver.key", "sa.key"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return err
		}
		if err := c.writePEM(name, "EC PRIVATE KEY", der); err != nil {
			return err
		}
		if name != "apiserver.key" {
			continue
		}
		if err := c.writeCertificate("apiserver.crt", server, authority, key, authorityKey); err != nil {
			return err
		}
	}
	return c.writeToken()
}

func (c *cluster) writeCertificate(name string, subject, issuer *x509.Certificate, key, issuerKey *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, subject, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		return fmt.Errorf("make certificate %s: %w", name, err)
	}
	return c.writePEM(name, "CERTIFICATE", der)
}

func (c *cluster) writePEM(name, kind string, der []byte) error {
	return os.WriteFile(c.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// writeToken makes the administrator's token and the client configuration that carries it.
func (c *cluster) writeToken() error {
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	token := hex.EncodeToString(secret)
	if err := os.WriteFile(c.file("tokens.csv"), []byte(token+",admin,admin,system:masters\n"), 0o600); err != nil {
		return err
	}
	return os.WriteFile(c.adminConfig(), fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", certificate-authority: %q}}]
users: [{name: admin, user: {token: %s}}]
contexts: [{name: c, context: {cluster: c, user: admin}}]
current-context: c
`, c.file("ca.crt"), token), 0o600)
}

func (c *cluster) file(name string) string { return filepath.Join(c.dir, name) }
func (c *cluster) adminConfig() string     { return c.file("admin.conf") }
